"""The tables of docs/scale.md from what ``mpt-jax compile --json`` wrote.

    python -m benchmarks.slices FILE.json …

One row for each file's train step, and one for its decoding where it was compiled. GiB and GFLOP of one device.
"""

import json
import sys
from pathlib import Path

GIB = 2**30
TRAIN = "backbone, slice, data × tensor | stage | arguments | temporaries | code | live, of | GFLOP | times the need | GB accessed"
TRAIN += " | weights gathered | all-reduce, MB | at best, ms by | examples/s"
DECODE = "backbone, slice, data × tensor | rows | arguments | temporaries | live, of | GB a token | at best, ms a token"
DECODE += " | collectives a token, MB"


def place(report: dict) -> str:
    """Backbone, slice and mesh."""
    mesh = report["mesh"]
    parts = [mesh["data"], *([mesh["fsdp"]] if mesh["fsdp"] > 1 else []), mesh["tensor"]]
    return f"{report['backbone']}, {report['topology']}, {' × '.join(map(str, parts))}"


def train_row(report: dict) -> list[str]:
    """Cells of TRAIN: the step of one micro-batch."""
    train, program = report["train"], report["train"]["programs"]["accumulate"]
    memory, time = program["memory"], program["time"]
    sizes = [f"{memory[kind] / GIB:.2f}" for kind in ("argument", "temp", "generated_code")]
    reduced = program["collectives"].get("all-reduce", {"bytes": 0.0})["bytes"]
    return [
        place(report), report["stage"], *sizes, f"{memory['live'] / GIB:.2f}, {report['hbm_bytes'] / GIB:g}",
        f"{program['flops'] / 1e9:,.0f}", f"{train['need']['ratio']:.3f}", f"{program['bytes'] / 1e9:.1f}",
        f"{100 * train['gathered_share_of_backbone']:.0f} %", f"{reduced / 1e6:,.1f}",
        f"{1e3 * time['seconds']:.0f} {time['bound']}", f"{train['examples_per_second']:,.0f}",
    ]  # fmt: skip


def decode_row(report: dict) -> list[str]:
    """Cells of DECODE: a token is the decoding program less its encoder, whose loop the compiler counts once."""
    decode = report["decode"]
    whole, encoder = (decode["programs"][name] for name in ("decode", "encode"))
    memory = whole["memory"]
    sent = [sum(row["bytes"] for row in program["collectives"].values()) for program in (whole, encoder)]
    return [
        place(report), f"{decode['rows']}", f"{memory['argument'] / GIB:.2f}", f"{memory['temp'] / GIB:.2f}",
        f"{memory['live'] / GIB:.2f}, {report['hbm_bytes'] / GIB:g}", f"{(whole['bytes'] - encoder['bytes']) / 1e9:.2f}",
        f"{1e3 * decode['seconds_per_token']:.2f}", f"{(sent[0] - sent[1]) / 1e6:,.1f}",
    ]  # fmt: skip


def table(head: str, rows: list[list[str]]) -> str:
    """A Markdown table; text on the left, numbers on the right."""
    names = head.split(" | ")
    left = {"backbone, slice, data × tensor", "stage"}
    rule = "|".join("---" if name in left else "---:" for name in names)
    return "\n".join([f"| {head} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


def main(paths: list[str]) -> None:
    """Prints both tables."""
    reports = [json.loads(Path(path).read_text()) for path in paths]
    print(table(TRAIN, [train_row(report) for report in reports]))
    decoded = [decode_row(report) for report in reports if "decode" in report]
    if decoded:
        print("\n" + table(DECODE, decoded))


if __name__ == "__main__":
    main(sys.argv[1:])
