"""What a backbone answers to the embedded source tasks asked with their plain textual prefix, without any prompt.

    python -m benchmarks.nano_probe [--backbone nano] [--rows 200] [--split validation]

Prints a Markdown table: exact matches in percent, and the most frequent answers.
"""

import argparse
import collections

import numpy as np

import tasks
from mpt_jax.config import BackboneSettings
from mpt_jax.infer import requests
from mpt_jax.infer.requests import Model, Requests, inference_spec
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.families.family import Network
from tasks.nano.embedded_rows import WORDINGS

LENGTHS = {"inputs": 64, "targets": 12}  # tokens


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nano_probe", description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--split", default="validation")
    options = parser.parse_args()
    backbone = load_backbone(BackboneSettings(options.backbone))
    vocabulary = backbone.vocabulary()
    model, spec = Model(Network(backbone.config), backbone.params, vocabulary), inference_spec(*LENGTHS.values(), 64)
    print("| source task | right | most frequent answers |\n|---|---:|---|")
    for name in tasks.embedded.SOURCES:
        rows = [row for row, _ in zip(tasks.rows(name, options.split), range(options.rows), strict=False)]
        tokens = [np.array([*vocabulary.encode(f"{WORDINGS[name][0]} {row['inputs']}"), 1], np.int32) for row in rows]
        given = Requests(tokens, [0] * len(rows), [LENGTHS["targets"]] * len(rows))
        answers = [vocabulary.decode(found) for found in requests.decode(model, given, spec, None)]
        wanted = [vocabulary.decode([*vocabulary.encode(row["targets"])]) for row in rows]
        right = 100 * np.mean([answer == want for answer, want in zip(answers, wanted, strict=True)])
        frequent = ", ".join(f"{answer} {count}" for answer, count in collections.Counter(answers).most_common(3))
        print(f"| `{name}` | {right:.1f} | {frequent} |", flush=True)


if __name__ == "__main__":
    main()
