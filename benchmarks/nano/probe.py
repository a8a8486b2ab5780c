"""What a backbone answers to embedded tasks asked in words, without any prompt: sources, and targets that it was never trained on.

    python -m benchmarks.nano.probe [--backbone nano] [--rows 200] [--split validation]

Prints a Markdown table in percent: exact matches of decoding, for tasks with labels the likeliest label also (as it is, and with each
label's mean log-probability over the rows taken out), and the most frequent answers.
"""

import argparse
import collections

import numpy as np

from benchmarks.nano.embedded_rows import TARGET_WORDINGS, WORDINGS
from mpt_jax import tasks
from mpt_jax.config import BackboneSettings
from mpt_jax.infer import requests
from mpt_jax.infer.requests import Model, Requests, inference_spec
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.families.family import Network

LENGTHS = {"inputs": 80, "targets": 12}  # tokens
SPEC = inference_spec(*LENGTHS.values(), 64)


def line(model: Model, name: str, asked: str, rows: list[dict]) -> str:
    """A row of the table."""
    vocabulary, labels = model.vocabulary, tasks.TABLE[name].labels
    tokens = [np.array(vocabulary.input_tokens(f"{asked} {row['inputs']}"), np.int32) for row in rows]
    given = Requests(tokens, [0] * len(rows), [LENGTHS["targets"]] * len(rows))
    answers = [vocabulary.text_of(found) for found in requests.decode(model, given, SPEC)]
    wanted = [vocabulary.text_of(vocabulary.encode(row["targets"])) for row in rows]
    right = 100 * np.mean([answer == want for answer, want in zip(answers, wanted, strict=True)])
    ranked = "| |"
    if labels:
        logp_RC = requests.score_each_label(model, given, requests.label_tokens(labels, vocabulary), SPEC)
        gold_R = np.array([labels.index(row["targets"]) for row in rows])
        kinds = (logp_RC, logp_RC - logp_RC.mean(axis=0))
        ranked = "".join(f"| {100 * np.mean(kind.argmax(axis=1) == gold_R):.1f} " for kind in kinds) + "|"
    least = 100 * collections.Counter(wanted).most_common(1)[0][1] / len(rows)
    frequent = ", ".join(f"{answer} {count}" for answer, count in collections.Counter(answers).most_common(3))
    return f"| `{name}` | {asked} | {least:.1f} | {right:.1f} {ranked} {frequent} |"


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nano.probe", description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--split", default="validation")
    options = parser.parse_args()
    backbone = load_backbone(BackboneSettings(options.backbone))
    model = Model(Network(backbone.config), backbone.params, backbone.vocabulary())
    print("| task | asked | most frequent | right | label | prior out | answers |\n|---|---|---:|---:|---:|---:|---|")
    for name, wordings in (WORDINGS | TARGET_WORDINGS).items():
        rows = [row for row, _ in zip(tasks.rows(name, options.split), range(options.rows), strict=False)]
        for asked in wordings if name in TARGET_WORDINGS else wordings[:1]:
            print(line(model, name, asked, rows), flush=True)


if __name__ == "__main__":
    main()
