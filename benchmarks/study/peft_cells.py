"""PEFT's own multitask prompt tuning on the same weights and rows: source stage and targets, trained by torch.

Its factors start at N(0, 0.02), it has one learning rate and no teachers (peft/tuners/multitask_prompt_tuning). The prompts that it
trains are exported and scored by this package, which answers as PEFT does (tests/test_formats_parity.py).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.study import plan
from benchmarks.study.data import CUE
from mpt_jax.data.batches import BatchSpec, make_batch
from mpt_jax.data.cache import open_cache
from mpt_jax.data.sampler import Stream, few_shot_rows
from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.model import formats
from mpt_jax.model.backbone import backbone_folder, framed

SOURCE_STEPS, SOURCE_BATCH, BATCH = 300, 12, 8
SCORED = 10  # steps between exported prompts


def model_folder(folder: Path) -> Path:
    """The backbone as a Hugging Face folder, written once."""
    path = folder / "hugging_face"
    if not path.exists():
        config, arrays, vocabulary = formats.read_backbone(backbone_folder(plan.BACKBONE))
        formats.write_backbone("hf", str(path), config, arrays, vocabulary)
    return path


def vocabulary():
    """The vocabulary as this package uses it for the study."""
    config, _, own = formats.read_backbone(backbone_folder(plan.BACKBONE))
    return framed(load_vocabulary(own), config, CUE)


def batches(stream: Stream, tasks: int, steps: int, vocabulary) -> Iterator[dict]:
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
        yield {name: torch.from_numpy(array) for name, array in tensors.items()}


def train(folder: Path, stream: Stream, tasks: int, steps: int, rate: float, seed: int, source: Path | None, out: Path, every: int) -> None:
    """Trains an adapter and exports it to ``out/STEP`` every so many steps, and at the end."""
    import peft
    import torch
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder(folder), dtype=torch.float32)
    start = {"prompt_tuning_init": "RANDOM"}
    if source is not None:
        start = {
            "prompt_tuning_init": "AVERAGE_SOURCE_TASKS",
            "prompt_tuning_init_state_dict_path": str(source / "adapter_model.safetensors"),
        }
    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_tasks=tasks, num_ranks=1, num_virtual_tokens=plan.LENGTH, **start
    )  # fmt: skip
    model = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / (steps // 10 + 1), (steps - step) / steps))
    for step, batch in enumerate(batches(stream, tasks, steps, vocabulary()), 1):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % every == 0 or step == steps:
            model.save_pretrained(out / str(step))
            print(f"peft {out.name}: step {step} of {steps}", flush=True)


def source(folder: Path, rate: float) -> Path:
    """The source stage over all source tasks; its last adapter."""
    out, words = folder / f"peft_source_{rate}", vocabulary()
    if not (out / str(SOURCE_STEPS)).exists():
        caches = tuple(open_cache(name, "train", words, folder / "cache") for name in plan.SOURCE_NAMES)
        stream = Stream(0, caches, tuple(range(len(caches))), SOURCE_BATCH, "stochastic")
        train(folder, stream, len(caches), SOURCE_STEPS, rate, 0, None, out, SOURCE_STEPS)
    return out / str(SOURCE_STEPS)


def target(folder: Path, name: str, shots: int, draw: int, rate: float, labels: int, start: Path) -> Path:
    """A target's few-shot run from the source adapter, on the rows that this package draws; the folder of its adapters by step."""
    out, words = folder / "peft" / f"{name}-{shots}-{draw}-{rate}", vocabulary()
    steps = plan.STEPS[shots]
    if not (out / str(steps)).exists():
        cache = open_cache(name, "train", words, folder / "cache")
        subset = few_shot_rows(cache, shots * labels, draw) if shots else None
        stream = Stream(draw, (cache,), (0,), BATCH, "stochastic", subset=(subset,))
        train(folder, stream, 1, steps, rate, draw, start, out, SCORED)
    return out
