"""PEFT's own multitask prompt tuning on the same weights and rows: source stage and targets, trained by torch.

Its factors start at N(0, 0.02), it has one learning rate and no teachers (peft/tuners/multitask_prompt_tuning). The prompts that it
trains are scored by this package, which answers as PEFT does (tests/test_formats_parity.py).
"""

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.study import choices, plan, score
from benchmarks.study.data import CUE, TARGETS
from benchmarks.study.lines import noted
from mpt_jax.config import BackboneSettings
from mpt_jax.data.batches import BatchSpec, make_batch
from mpt_jax.data.cache import open_cache
from mpt_jax.data.sampler import Stream, few_shot_rows
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.model import formats
from mpt_jax.model.backbone import Backbone, backbone_folder, framed, load_backbone


def model_folder(folder: Path) -> Path:
    """The backbone as a Hugging Face folder, written once."""
    path = folder / "hugging_face"
    if not path.exists():
        config, arrays, vocabulary = formats.read_backbone(backbone_folder(plan.BACKBONE))
        temporary = path.with_name(f"{path.name}-{os.getpid()}")
        formats.write_backbone("hf", str(temporary), config, arrays, vocabulary)
        try:
            temporary.rename(path)
        except OSError:  # another process was first
            shutil.rmtree(temporary)
    return path


@functools.cache
def model(folder: Path):
    """The backbone in transformers, loaded once a process, and its device."""
    import torch
    import transformers

    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, plan.DTYPE)
    return transformers.AutoModelForCausalLM.from_pretrained(model_folder(folder), dtype=dtype).to(device), device


@functools.cache
def backbone() -> Backbone:
    """The backbone here, which scores."""
    return load_backbone(BackboneSettings(plan.BACKBONE, dtype=plan.DTYPE))


def vocabulary():
    """The vocabulary as this package uses it for the study."""
    config, _, own = formats.read_backbone(backbone_folder(plan.BACKBONE))
    return framed(load_vocabulary(own), config, CUE)


def batches(stream: Stream, tasks: int, steps: int, vocabulary, device: str) -> Iterator[dict]:
    """The rows that this package draws at each step, as torch tensors: input and target side by side, filled up on the right."""
    import torch

    longest, frame = stream.batch_size, vocabulary.frame
    spec = BatchSpec(
        plan.LENGTHS["inputs"], plan.LENGTHS["targets"], longest, plan.BUCKETS, input_end=frame.input_end, target_end=frame.target_end
    )
    for step in range(steps):
        (micro,) = make_batch([stream], step, spec, tasks).micro
        inputs, targets = micro["input_length_B"], micro["target_length_B"]
        ids = np.zeros((longest, int((inputs + targets).max())), np.int64)
        labels, mask = np.full_like(ids, -100), np.zeros_like(ids)
        for n, (first, last) in enumerate(zip(inputs, inputs + targets, strict=True)):
            ids[n, :last] = np.concatenate([micro["inputs_BL"][n, :first], micro["targets_BT"][n, : last - first]])
            labels[n, first:last], mask[n, :last] = ids[n, first:last], 1
        tensors = {"input_ids": ids, "labels": labels, "attention_mask": mask, "task_ids": micro["task_id_B"].astype(np.int64)}
        yield {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}


def train(folder: Path, stream: Stream, tasks: int, steps: int, rate: float, seed: int, source: Path | None, every: int):
    """Trains an adapter. Returns it, and the prompts (N, P, D) at step 0 and every so many steps, by step."""
    import peft
    import torch

    base, device = model(folder)
    torch.manual_seed(seed)
    start = {"prompt_tuning_init": "RANDOM"}
    if source is not None:
        start = {
            "prompt_tuning_init": "AVERAGE_SOURCE_TASKS",
            "prompt_tuning_init_state_dict_path": str(source / "adapter_model.safetensors"),
        }
    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_tasks=tasks, num_ranks=1, num_virtual_tokens=plan.LENGTH, **start
    )  # fmt: skip
    adapted = peft.get_peft_model(base, config).to(device)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, rate, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / (steps // 10 + 1), (steps - step) / steps))
    prompts = {0: prompts_of(adapted)}
    for step, batch in enumerate(batches(stream, tasks, steps, vocabulary(), device), 1):
        adapted(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % every == 0 or step == steps:
            prompts[step] = prompts_of(adapted)
    return adapted, prompts


def prompts_of(adapted) -> np.ndarray:
    """The composed prompts (N, P, D) of an adapter, as its forward pass has them."""
    import torch

    encoder = adapted.prompt_encoder[adapted.active_adapter]
    with torch.no_grad():
        factors = torch.matmul(encoder.prefix_task_cols.float(), encoder.prefix_task_rows.float())
        return (factors * encoder.embedding.weight.float()[None]).cpu().numpy()


def prompts_file(folder: Path, name: str) -> Path:
    """Where a cell's best prompts are (N, P, D)."""
    return folder / "peft" / f"{name}.npy"


def source_cell(folder: Path, cell: plan.Cell, results: Path) -> dict[str, list[dict]]:
    """The source stage over all source tasks under one rate, and what its prompts reach on the dev splits."""
    words, rate, steps = vocabulary(), float(cell.way), plan.steps(plan.SOURCE_STEPS)
    held = tuple(open_cache(name, "train", words, folder / "cache") for name in plan.SOURCE_NAMES)
    stream = Stream(0, held, tuple(range(len(held))), 24, "stochastic")
    adapted, prompts = train(folder, stream, len(held), steps, rate, 0, None, steps)
    adapted.save_pretrained(folder / f"peft_source_{rate}")
    pairs = list(enumerate(plan.SOURCE_NAMES))
    found = score.accuracies(folder, prompts[steps], pairs, "validation", backbone(), plan.DEV_ROWS)
    return {"sources": [{"run": cell.name, "rate": rate, "task": task, "dev": dev} for (_, task), dev in zip(pairs, found, strict=True)]}


def target_cell(folder: Path, cell: plan.Cell, results: Path) -> dict[str, list[dict]]:
    """Few-shot runs of a target from the source adapter that does best on the sources' dev splits, on the rows that this package draws."""
    means = choices.mean_by([line for line in noted("sources", results) if line["run"].startswith("peft")], "rate")
    source_rate = max(means, key=means.__getitem__)[0]
    rates = plan.PEFT_RATES if cell.search else (choices.best_rates(noted("runs", results), cell.way)[0],)
    words, steps, target = vocabulary(), plan.steps(plan.STEPS[cell.shots]), cell.part
    cache = open_cache(target, "train", words, folder / "cache")
    source = folder / f"peft_source_{source_rate}"
    if not source.exists():  # another machine noted its lines
        source_cell(folder, cell._replace(kind="peft_source", way=str(source_rate)), results)
    lines, kept = [], []
    for rate in rates:
        for draw in cell.draws:
            subset = few_shot_rows(cache, cell.shots * len(TARGETS[target].labels), draw) if cell.shots else None
            stream = Stream(draw, (cache,), (0,), 8, "stochastic", subset=(subset,))
            every = max(steps // 4, 1)
            _, prompts = train(folder, stream, 1, steps, rate, draw, source, every)
            found = score.accuracies(
                folder,
                np.concatenate(list(prompts.values())),
                [(n, target) for n in range(len(prompts))],
                "validation",
                backbone(),
                plan.DEV_ROWS,
            )
            curve = list(zip(prompts, found, strict=True))
            step, best = max(curve, key=lambda point: (point[1], -point[0]))
            kept.append(prompts[step])
            lines.append(
                {
                    "cell": cell.name, "way": cell.way, "shots": cell.shots, "search": cell.search, "folder": cell.name, "row": len(lines),
                    "target": target, "draw": draw, "rate": rate, "factor_rate": 0.0, "start": str(source_rate), "dev": best, "step": step,
                    "curve": curve,
                }
            )  # fmt: skip
    prompts_file(folder, cell.name).parent.mkdir(exist_ok=True)
    np.save(prompts_file(folder, cell.name), np.concatenate(kept))
    return {"runs": lines}
