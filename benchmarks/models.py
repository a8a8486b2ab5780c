"""python -m benchmarks.models: the sizes of docs/models.md, from the table of families."""

from mpt_jax.model.families import FAMILIES

GIB = 2**30


def table() -> str:
    """A Markdown table: each named size with its parameters and the memory of its frozen weights in bfloat16."""
    lines = ["| family | size | parameters, millions | weights in bfloat16, GiB |", "|---|---|---:|---:|"]
    for family in FAMILIES.values():
        for name, config in family.sizes.items():
            number = config.num_parameters()
            lines.append(f"| {family.name} | `{name}` | {number / 1e6:,.0f} | {2 * number / GIB:,.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table())
