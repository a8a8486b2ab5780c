"""Span corruption as in T5 (Raffel et al. 2020, 3.1.4): random spans become sentinels, the targets spell them out."""

import random


def partition(total: int, parts: int, rng: random.Random) -> list[int]:
    """`parts` positive integers that sum to `total`, every such list equally likely."""
    cuts = sorted(rng.sample(range(1, total), parts - 1))
    return [right - left for left, right in zip([0, *cuts], [*cuts, total], strict=True)]


def corrupt(
    tokens: list[int], vocabulary_size: int, rng: random.Random, noise: float = 0.15, mean_span: float = 3.0
) -> tuple[list[int], list[int]]:
    """Inputs and targets (both without EOS) of one segment of at least 4 tokens.

    Sentinel i is id vocabulary_size - 1 - i. Kept and noise spans alternate, kept first, as in T5; the targets are
    sentinel, span, sentinel, span, ..., and end with one more sentinel. Raises ValueError for a shorter segment.
    """
    if len(tokens) < 4:
        raise ValueError(f"span corruption needs at least 4 tokens, got {len(tokens)}: make segments longer")
    noisy = min(max(round(len(tokens) * noise), 1), len(tokens) - 1)
    spans = min(max(round(noisy / mean_span), 1), len(tokens) - noisy)
    noise_lengths, kept_lengths = partition(noisy, spans, rng), partition(len(tokens) - noisy, spans, rng)
    inputs: list[int] = []
    targets: list[int] = []
    at = 0
    for i, (kept, lost) in enumerate(zip(kept_lengths, noise_lengths, strict=True)):
        sentinel = vocabulary_size - 1 - i
        inputs += tokens[at : at + kept] + [sentinel]
        targets += [sentinel] + tokens[at + kept : at + kept + lost]
        at += kept + lost
    return inputs, targets + [vocabulary_size - 1 - spans]


def rebuild(inputs: list[int], targets: list[int], first_sentinel: int) -> list[int]:
    """The segment that `corrupt` was given: each sentinel of the inputs replaced by its span in the targets."""
    spans: dict[int, list[int]] = {}
    current = -1
    for token in targets:
        if token >= first_sentinel:
            current = token
            spans[current] = []
        else:
            spans[current].append(token)
    rebuilt: list[int] = []
    for token in inputs:
        rebuilt += spans[token] if token >= first_sentinel else [token]
    return rebuilt
