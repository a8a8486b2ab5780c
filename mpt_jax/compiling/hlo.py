"""What compiled programs say about themselves: collectives by kind and size, products with the shape of a weight."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_COLLECTIVE = re.compile(rf"= (?P<type>\(?[a-z0-9]+\[.*?) (?P<kind>{'|'.join(KINDS)})(?P<start>-start)?\(")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\[(\d+),(\d+)\]|\{\{([0-9,]*)\})")


class Collective(NamedTuple):
    """One collective of a program on one device: its kind, the shapes of its results, their bytes, devices that take part."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    result_bytes: float
    group: int

    @property
    def sent_bytes(self) -> float:
        """Bytes each device sends, in a ring."""
        others = self.group - 1
        if self.kind == "all-reduce":
            return 2 * self.result_bytes * others / self.group
        if self.kind == "reduce-scatter":
            return self.result_bytes * others
        if self.kind == "collective-permute":
            return self.result_bytes
        return self.result_bytes * others / self.group


def collectives(text: str, devices: int) -> list[Collective]:
    """The collectives of an optimised program's text; those in a loop's body are there once."""
    found = []
    for line in text.splitlines():
        match = _COLLECTIVE.search(line)
        if not match:
            continue
        arrays = [(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in _SHAPE.findall(match["type"])]
        arrays = [(dtype, sizes) for dtype, sizes in arrays if dtype in _BYTES]
        if match["start"] and match["type"].startswith("("):
            # operands come before results, and unsigned words of bookkeeping behind them
            arrays = [array for array in arrays if array[0] != "u32" or array[1]]
            half = len(arrays) // 2
            arrays = arrays if match["kind"] == "all-reduce" else arrays[half:]
        size = sum(_BYTES[dtype] * math.prod(sizes) for dtype, sizes in arrays)
        group = _GROUPS.search(line)
        members = devices if not group else int(group[2]) if group[2] else len(group[3].split(",")) if group[3] else devices
        found.append(Collective(match["kind"], tuple(sizes for _, sizes in arrays), float(size), max(members, 1)))
    return found


def by_kind(found: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """For each kind that occurs: how many, bytes of the results, of the largest, and bytes sent by a device."""
    table: dict[str, dict[str, float]] = {}
    for one in found:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0.0, "largest": 0.0, "sent": 0.0})
        row["count"] += 1
        row["bytes"] += one.result_bytes
        row["largest"] = max(row["largest"], one.result_bytes)
        row["sent"] += one.sent_bytes
    return table


def gathered_weights(found: Iterable[Collective], weight_shapes: Sequence[tuple[int, ...]]) -> float:
    """Elements of those all-gathers whose result has the shape of a whole weight."""
    whole = {tuple(sorted(shape)) for shape in weight_shapes}
    gathered = [shape for one in found if one.kind == "all-gather" for shape in one.shapes]
    return float(sum(math.prod(shape) for shape in gathered if tuple(sorted(shape)) in whole))


def products_like(stablehlo: str, weight_shapes: Sequence[tuple[int, ...]]) -> int:
    """Matrix products of a program, before the compiler, whose result has the shape of a weight: gradients of weights would be."""
    results = re.findall(r"stablehlo\.dot_general .*-> tensor<([0-9x]+)x[a-z0-9]+>", stablehlo)
    shapes = {tuple(sorted(shape)) for shape in weight_shapes}
    return sum(tuple(sorted(int(size) for size in result.split("x"))) in shapes for result in results)
