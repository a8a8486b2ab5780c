"""Tables of names: which array of a family is called what in which format, and its shape. Readers and writers are driven by them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Name:
    """A row: our name and those of other formats, with {i} for the layer; shape in words of ``sizes``; when it exists.

    turned: Hugging Face keeps the transpose (torch.nn.Linear stores output x input), and so does GGUF. gguf: '' = that format has no such
    model. layers: one for each layer of that stack.
    """

    ours: str
    huggingface: str
    shape: tuple[str, ...]
    turned: bool = False
    layers: str = ""
    only: str = ""  # exists only in models that have this
    gguf: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array that a shape has: its names, our shape, and whether other formats keep the transpose.

    Without names in other formats ('') it is read and written in this package's own format alone.

    >>> Entry("token_embedder/embedding", "", (8192, 192), False, "").shape
    (8192, 192)
    """

    ours: str
    huggingface: str
    shape: tuple[int, ...]
    turned: bool
    gguf: str


def expand(table: Sequence[Name], sizes: Mapping[str, int], layers: Mapping[str, int], present: set[str]) -> Iterator[Entry]:
    """All arrays of a model, in the order of the table, the layers of a stack together; ``present``: the words of ``only`` that hold."""
    for name in table:
        if name.only and name.only not in present:
            continue
        shape = tuple(sizes[word] for word in name.shape)
        for i in range(layers[name.layers] if name.layers else 1):
            yield Entry(name.ours.format(i=i), name.huggingface.format(i=i), shape, name.turned, name.gguf.format(i=i))
