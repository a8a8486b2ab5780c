"""python -m benchmarks.models: the sizes of docs/models.md, from the table of families."""

from mpt_jax.compiling.chips import CHIPS, GIB, GPUS
from mpt_jax.model.families import FAMILIES

DEVICES = {"v5e": CHIPS["v5e"], "v6e": CHIPS["v6e"], "H100": GPUS["H100"], "v5p": CHIPS["v5p"]}  # smallest first
SHARE = 0.75  # of the memory, for weights


def holder(weights: float) -> str:
    """The smallest device, or number of v5e chips, whose memory the weights fill to SHARE at most."""
    for name, device in DEVICES.items():
        if weights <= SHARE * device.hbm_bytes:
            return name
    chips = 2
    while weights > chips * SHARE * CHIPS["v5e"].hbm_bytes:
        chips *= 2
    return f"{chips} × v5e"


def table() -> str:
    """A Markdown table: each named size with its parameters and the memory of its frozen weights in bfloat16."""
    lines = ["| family | size | parameters, millions | weights in bfloat16, GiB | held by |", "|---|---|---:|---:|---|"]
    for family in FAMILIES.values():
        for name, config in family.sizes.items():
            number = config.num_parameters()
            lines.append(f"| {family.name} | `{name}` | {number / 1e6:,.0f} | {2 * number / GIB:,.2f} | {holder(2.0 * number)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table())
