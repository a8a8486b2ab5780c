"""Rows of random tokens with lengths like those of real tasks, as a token cache that every side of a comparison reads.

Lengths are log-normal. 'short': median 45, cap 256, the shape of GLUE's tokenised rows; 'long': median 180, cap 512;
'medium': median 150, cap 256, MPT's limit; 'of_64': 64 each. Targets have 2-5 tokens, end of sequence included.
"""

from pathlib import Path

import numpy as np

from mpt_jax.data import cache_writer
from mpt_jax.data.cache import TokenCache, read_cache
from mpt_jax.data.sampler import Stream, draw
from mpt_jax.data.vocabulary import EOS_ID, load_vocabulary

SPREAD = 0.6  # standard deviation of the logarithm: 95 % of 'short' lie within 14 .. 150 tokens [ours]
# median, cap in tokens, end of sequence included
SETS = {"short": (45, 256), "long": (180, 512), "medium": (150, 256), "of_64": (64, 64), "tiny": (8, 16)}
TARGETS = (2, 5)  # tokens, end of sequence included
COUNT = 4096
IDS = (100, 380)  # token ids: within a vocabulary of bytes, so that the cache needs no SentencePiece model


def lengths(name: str, count: int, seed: int = 0) -> np.ndarray:
    """Lengths (count,) int64 of a set of rows."""
    median, cap = SETS[name]
    spread = SPREAD if cap > median else 0.0
    drawn = np.random.default_rng(seed).lognormal(np.log(median), spread, count)
    return np.clip(np.rint(drawn), 2, cap).astype(np.int64)


def token_cache(folder: Path, name: str, task: str = "rows", count: int = COUNT, seed: int = 0) -> TokenCache:
    """The token cache of a set of rows, written where there is none."""
    path = folder / "rows" / f"{task}_{name}_{count}_{seed}"
    if not path.exists():
        vocabulary = load_vocabulary("bytes")
        rng = np.random.default_rng([seed, 1])

        def tokens(length: int) -> np.ndarray:
            return np.append(rng.integers(*IDS, length - 1), EOS_ID).astype(np.int32)

        sizes = zip(lengths(name, count, seed), rng.integers(TARGETS[0], TARGETS[1] + 1, count), strict=True)
        examples = ({"inputs": tokens(length), "targets": tokens(target)} for length, target in sizes)
        key = {"format": 1, "task": task, "split": "train", "vocabulary": vocabulary.fingerprint, "ingredients": {}}
        cache_writer.write(key, examples, vocabulary, path)
    return read_cache(path)


def stream(caches: list[TokenCache], batch_size: int, seed: int = 0) -> Stream:
    """Rows of all caches, mixed alike; each cache is a task."""
    return Stream(seed, tuple(caches), tuple(range(len(caches))), batch_size, "equal")


def drawn(rows: Stream, step: int) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(task, inputs, targets) of the rows of a step: the same that make_batch takes."""
    cache_B, row_B = draw(rows, step)
    return [(int(c), rows.caches[c].inputs(row), rows.caches[c].targets(row)) for c, row in zip(cache_B, row_B, strict=True)]
