"""What a vocabulary makes of labels and right texts: which it cannot tell apart, which are too long, how it writes them."""

import functools
from collections.abc import Callable, Iterable, Mapping

from mpt_jax import tasks
from mpt_jax.data.cache import TokenCache
from mpt_jax.data.vocabulary import Vocabulary
from mpt_jax.errors import UserError

REMEMBERED = 2**16  # texts: dev splits are scored again and again


@functools.lru_cache(maxsize=REMEMBERED)
def written(vocabulary: Vocabulary, text: str) -> str:
    """The text as the vocabulary writes it: encoded and decoded."""
    return vocabulary.text_of(vocabulary.target_tokens(text))


def writer(vocabulary: Vocabulary) -> Callable[[str], str]:
    """``written`` of a vocabulary, as `tasks.scorer` takes it: text -> the text as the vocabulary writes it.

    >>> writer(run.vocabulary)("a  joy")
    'a joy'
    """
    return functools.partial(written, vocabulary)


def spelling(task: str, vocabulary: Vocabulary, limit: int | None = None) -> dict[str, str]:
    """A task's labels by what the vocabulary makes of them: a lower-case vocabulary cannot answer "World" otherwise.

    Empty for a task without labels. Raises UserError for labels that it cannot tell apart or not write at all, and for one of more
    than ``limit`` tokens (end of sequence included): such labels can be neither learned nor answered.
    """
    known = tasks.TABLE.get(task)
    labels = (known.labels if known else None) or ()
    check_labels(task, labels, vocabulary, limit)
    return {written(vocabulary, label): label for label in labels}


def check_labels(task: str | None, labels: Iterable[str], vocabulary: Vocabulary, limit: int | None = None) -> None:
    """Raises UserError as ``spelling`` does."""
    what = f"task {task!r}: " if task else ""
    seen: dict[object, str] = {}
    for label in labels:
        tokens = vocabulary.target_tokens(label)
        if not vocabulary.encode(label):
            raise UserError(f"{what}vocabulary {vocabulary.path!r} cannot write label {label!r}: choose another word for it")
        text = written(vocabulary, label)
        other = seen.get(tuple(tokens)) or seen.get(text)
        if other is not None:
            message = f"{what}labels {other!r} and {label!r} are the same to vocabulary {vocabulary.path!r}, which writes both as {text!r}"
            raise UserError(f"{message}: choose words that it can tell apart, or another vocabulary")
        seen[tuple(tokens)] = seen[text] = label
        if limit is not None and len(tokens) > limit:
            message = f"{what}label {label!r} has {len(tokens)} tokens, the limit is {limit}"
            raise UserError(f"{message}: raise TASK_FEATURE_LENGTHS['targets'] or choose shorter labels")


def longest_label(labels: Iterable[str], vocabulary: Vocabulary) -> int:
    """Tokens of the longest label, end of sequence included."""
    return max(len(vocabulary.target_tokens(label)) for label in labels)


def cut_notes(caches: Iterable[TokenCache], lengths: Mapping[str, int]) -> list[str]:
    """A line for each feature of a task split that loses tokens. lengths: TASK_FEATURE_LENGTHS, {'inputs': …, 'targets': …}."""
    notes = []
    for cache in caches:
        for feature, sizes in (("inputs", cache.input_lengths), ("targets", cache.target_lengths)):
            limit = lengths[feature]
            cut = int((sizes > limit).sum())
            if cut:
                told = f"{cut:,} of {cache.rows:,} {feature} are longer than {limit} tokens and are cut (the longest has {sizes.max():,})"
                notes.append(f"task {cache.name}, {cache.split}: {told}: TASK_FEATURE_LENGTHS[{feature!r}]")
    return notes
