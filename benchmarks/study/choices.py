"""What is chosen, from lines of dev scores alone: rates of each way to start, the nearest source task of each target."""

from collections import defaultdict

from benchmarks.study.plan import WAYS


def mean_by(lines: list[dict], *keys: str) -> dict[tuple, float]:
    """Mean dev score over (target, draw) of the lines with equal values under the keys."""
    found = defaultdict(list)
    for line in lines:
        found[tuple(line[key] for key in keys)].append(line["dev"])
    return {key: sum(values) / len(values) for key, values in found.items()}


def best_rates(lines: list[dict], way: str) -> tuple[float, float]:
    """(rate, factor rate) of a way with the best mean dev score over the searched draws and all targets; its only ones where it has one."""
    if way in WAYS and WAYS[way].one_rate:
        return WAYS[way].rates[0], WAYS[way].factor_rates[0]
    searched = [line for line in lines if line["search"] and line["way"] == (WAYS[way].like if way in WAYS and WAYS[way].like else way)]
    means = mean_by(searched, "rate", "factor_rate")
    return max(means, key=lambda rates: (means[rates], rates))


def nearest_source(screened: list[dict], run: str) -> dict[str, str]:
    """The source task of a run whose prompt answers each target's dev rows best without training on them, by target."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for line in screened:
        if line["run"] == run and line["source"] != "mean":
            for target, score in line["dev"].items():
                found[target][line["source"]] = score
    return {target: max(scores, key=scores.__getitem__) for target, scores in found.items()}
