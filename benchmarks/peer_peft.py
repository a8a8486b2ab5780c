"""The peer: a training step of Hugging Face PEFT's MULTITASK_PROMPT_TUNING as its users would write it. Run by the benchmarks.

Each batch is padded to its longest row; the encoder alone has the prompt (num_transformer_submodules=1, the form that `generate` uses).
Dropout is off, as it is here. Prints a JSON line with the seconds of each timed step and the peak of resident memory.
"""

import argparse
import time

import numpy as np
import torch
import transformers
from peft import MultitaskPromptTuningConfig, TaskType, get_peft_model

from benchmarks import rows
from benchmarks.side import add_side_arguments, finish, rows_of, steps_of


def load_model(folder: str, prompt: int, tasks: int):
    """T5 with a PEFT multitask prompt over its encoder; the prompt alone trains."""
    # given at loading: T5Attention keeps the rate that it was made with
    model = transformers.T5ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, dropout_rate=0.0, attn_implementation="sdpa"
    )
    config = MultitaskPromptTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, num_tasks=tasks, num_virtual_tokens=prompt, num_transformer_submodules=1, num_ranks=1
    )
    return get_peft_model(model, config)


def collate(examples) -> dict[str, torch.Tensor]:
    """Rows padded to the longest of the batch; padding of targets is left out of the loss (-100)."""

    def padded(tokens: list[np.ndarray], fill: int) -> torch.Tensor:
        lines = torch.full((len(tokens), max(map(len, tokens))), fill, dtype=torch.long)
        for line, row in zip(lines, tokens, strict=True):
            line[: len(row)] = torch.from_numpy(np.array(row, np.int64))
        return lines

    inputs = padded([row for _, row, _ in examples], 0)
    batch = {"input_ids": inputs, "attention_mask": (inputs > 0).long(), "labels": padded([row for _, _, row in examples], -100)}
    return batch | {"task_ids": torch.tensor([task for task, _, _ in examples])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_side_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    source = rows_of(arguments)
    model = load_model(arguments.backbone, arguments.prompt, len(source.caches))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.3)
    seconds = []
    for step in steps_of(arguments):
        start = time.perf_counter()
        loss = model(**collate(rows.drawn(source, step))).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - start)
    finish({"seconds": seconds[arguments.warmup :], "steps": list(steps_of(arguments))[arguments.warmup :], "loss": loss.item()})


if __name__ == "__main__":
    main()
