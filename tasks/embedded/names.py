"""Tasks about names and numbers: CLDR's English names (Babel), spelled numbers (num2words)."""

from collections.abc import Iterator

from mpt_jax.tasks.embedded.materials import cldr_names
from mpt_jax.tasks.embedded.splitting import balanced, half, limited, within

LARGEST_NUMBER = 1999


def name_kind(split: str) -> Iterator[dict]:
    """A name -> what kind of thing it names."""
    rows = [
        {"name": name, "label": kind}
        for kind, names in cldr_names().items()
        for name in within(names, split, target=False)
    ]
    yield from balanced(rows, split, target=False)


def number_words(split: str) -> Iterator[dict]:
    """A number in digits -> in words."""
    yield from _spelled(split, "cardinal", target=False)


def ordinal_words(split: str) -> Iterator[dict]:
    """A number in digits -> the ordinal in words; other numbers than in `number_words`."""
    yield from _spelled(split, "ordinal", target=True)


def _spelled(split: str, form: str, target: bool) -> Iterator[dict]:
    from num2words import num2words

    numbers = [n for n in range(1, LARGEST_NUMBER + 1) if half(n) == int(target)]
    rows = (
        {"number": n, "words": num2words(n, to=form).replace(",", "")} for n in within(numbers, split, target)
    )
    yield from limited(list(rows), split, target)
