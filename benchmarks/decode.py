"""Greedy answers to 256 rows of mixed tasks, each with its task's prompt, beside transformers.generate with the same prompts.

    python -m benchmarks.decode --json FILE [--repeats N --append]

T5-Base, float32, rows 'short', 100 prompt vectors, at most 5 new tokens, random weights: neither side ends early but by chance. The peer
pads batches of 32 in the order given, as a user's loop does; its encoder inputs are prompt and embedded tokens, as PEFT passes them on.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import alternate, rows
from benchmarks.backbones import backbone_folder
from benchmarks.side import add_side_arguments, finish, rows_of

TASKS, NEW_TOKENS = 4, 5


def prompts(width: int, length: int) -> np.ndarray:
    """Prompts (TASKS, P, D) of both sides."""
    return np.random.default_rng(2).standard_normal((TASKS, length, width)).astype(np.float32)


def answer_ours(arguments: argparse.Namespace, given: list) -> tuple[list[float], list]:
    """Seconds of each timed pass over all rows, and the answers."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    from mpt_jax.config import BackboneSettings
    from mpt_jax.infer import requests
    from mpt_jax.methods.bank import PromptBank
    from mpt_jax.methods.prompt import METHOD, paths_of
    from mpt_jax.model.backbone import load_backbone
    from mpt_jax.model.families.family import Network

    settings = BackboneSettings(arguments.backbone, "bytes")
    backbone, group_N = load_backbone(settings), np.arange(TASKS, dtype=np.int32)
    bank = PromptBank(prompts(backbone.config.d_model, arguments.prompt), None, None, group_N)
    network = Network(backbone.config, settings.computation, METHOD.adaptation)
    model = requests.Model(network, backbone.params, backbone.vocabulary(), paths_of(bank), METHOD.parts, group_N)
    asked = requests.Requests([row for _, row, _ in given], [task for task, _, _ in given], [NEW_TOKENS] * len(given))
    spec = requests.inference_spec(rows.SETS[arguments.rows][1], NEW_TOKENS, arguments.batch)
    return _timed(arguments, lambda: requests.decode(model, asked, spec))


def answer_transformers(arguments: argparse.Namespace, given: list) -> tuple[list[float], list]:
    """The same of transformers."""
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    model = transformers.T5ForConditionalGeneration.from_pretrained(arguments.backbone, dtype=torch.float32).eval()
    prompt_NPD = torch.from_numpy(prompts(model.config.d_model, arguments.prompt))

    @torch.no_grad()
    def batch(part: list) -> list:
        tokens = torch.zeros((len(part), max(len(row) for _, row, _ in part)), dtype=torch.long)
        for line, (_, row, _) in zip(tokens, part, strict=True):
            line[: len(row)] = torch.from_numpy(np.array(row, np.int64))
        prompt_BPD = prompt_NPD[[task for task, _, _ in part]]
        mask = torch.cat([torch.ones(prompt_BPD.shape[:2], dtype=torch.long), (tokens > 0).long()], dim=1)
        embedded = torch.cat([prompt_BPD, model.shared(tokens)], dim=1)
        made = model.generate(inputs_embeds=embedded, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)
        return list(made[:, 1:].numpy())

    size = arguments.batch
    return _timed(arguments, lambda: [row for start in range(0, len(given), size) for row in batch(given[start : start + size])])


def _timed(arguments: argparse.Namespace, answer) -> tuple[list[float], list]:
    seconds = []
    for _ in range(arguments.warmup + arguments.steps):
        start = time.perf_counter()
        answers = answer()
        seconds.append(time.perf_counter() - start)
    return seconds[arguments.warmup :], answers


def side(argv: list[str]) -> None:
    """A process of one side: prints seconds, and the answers as token rows cut at the end of sequence."""
    parser = argparse.ArgumentParser()
    add_side_arguments(parser)
    parser.add_argument("--side", required=True, choices=("ours", "transformers"))
    parser.add_argument("--count", type=int, default=256)
    arguments = parser.parse_args(argv)
    given = [row for step in range(-(-arguments.count // arguments.batch)) for row in rows.drawn(rows_of(arguments), step)]
    answer = answer_ours if arguments.side == "ours" else answer_transformers
    seconds, answers = answer(arguments, given[: arguments.count])
    finish({"seconds": seconds, "answers": [[int(token) for token in row if token > 0] for row in answers]})


def summarise(runs: dict[str, list[dict]]) -> dict:
    """Times, and the share of rows to which both sides gave the same tokens (random weights: near ties may fall either way)."""
    found = alternate.against(runs, "transformers")
    pairs = zip(runs["ours"][-1]["answers"], runs["transformers"][-1]["answers"], strict=True)
    found["same_answers"] = round(float(np.mean([ours == theirs for ours, theirs in pairs])), 4)
    for many in runs.values():
        for run in many:
            run.pop("answers", None)
    return found


def main() -> None:
    if "--side" in sys.argv:
        side(sys.argv[1:])
        return
    parser = alternate.parser(__doc__, preload=True)
    arguments = parser.parse_args()
    size, rows_name, prompt, count = ("tiny", "tiny", 10, 32) if arguments.small else ("t5_1_1_base", "short", 100, 256)
    folder = Path(arguments.folder)
    for n in range(TASKS):
        rows.token_cache(folder, rows_name, f"task{n}", seed=n)
    given = ["--backbone", backbone_folder(folder, size), "--folder", folder, "--rows", rows_name, "--tasks", TASKS]
    given += ["--prompt", prompt, "--count", count, "--steps", 1, "--batch", 32]
    sides = {name: ["benchmarks.decode", "--side", name, *given] for name in ("transformers", "ours")}
    alternate.compare(arguments, "decode", "small" if arguments.small else f"{size} {count} rows", sides, summarise)


if __name__ == "__main__":
    main()
