"""The peer: a training step of Hugging Face PEFT as its users would write it, of multitask prompt tuning if no method is named. Run by
the benchmarks.

Each batch is padded to its longest row. Of T5 the encoder alone has the prompt (num_transformer_submodules=1, the form that `generate`
uses); a decoder-only model has it in front, and its loss is of the target alone. Dropout is off, as it is here. Prints a JSON line with
the seconds of each timed step and the peak of resident memory.
"""

import argparse
import time

import numpy as np
import torch
import transformers
from peft import (
    IA3Config,
    LoraConfig,
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)  # fmt: skip

from benchmarks import rows
from benchmarks.side import PEFT_METHODS, add_side_arguments, finish, rows_of, steps_of


def config_of(method: str, task_type: TaskType, prompt: int):
    """PEFT's configuration of a row of PEFT_METHODS, with PEFT's defaults for T5."""
    if method == "prompt":
        return PromptTuningConfig(task_type=task_type, num_virtual_tokens=prompt, num_transformer_submodules=1)
    if method == "prefix":
        return PrefixTuningConfig(task_type=task_type, num_virtual_tokens=prompt)
    if method == "lora":
        return LoraConfig(task_type=task_type, r=8, lora_alpha=8, target_modules=["q", "v"])
    return IA3Config(task_type=task_type, target_modules=["k", "v", "wo"], feedforward_modules=["wo"])


def load_model(folder: str, prompt: int, tasks: int, method: str = ""):
    """The model with PEFT's multitask prompt, or a row of PEFT_METHODS; the method's parameters alone train."""
    seq2seq = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    # given at loading: T5Attention keeps the rate that it was made with
    rates = {"dropout_rate": 0.0} if seq2seq else {"attention_dropout": 0.0}
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **rates)
    task_type = TaskType.SEQ_2_SEQ_LM if seq2seq else TaskType.CAUSAL_LM
    if method:
        return get_peft_model(model, config_of(method, task_type, prompt))
    config = MultitaskPromptTuningConfig(
        task_type=task_type, num_tasks=tasks, num_virtual_tokens=prompt, num_transformer_submodules=1, num_ranks=1
    )
    return get_peft_model(model, config)


def collate(examples, seq2seq: bool = True) -> dict[str, torch.Tensor]:
    """Rows padded to the longest of the batch; padding, and the inputs of a decoder-only model, are left out of the loss (-100)."""

    def padded(tokens: list[np.ndarray], fill: int) -> torch.Tensor:
        lines = torch.full((len(tokens), max(map(len, tokens))), fill, dtype=torch.long)
        for line, row in zip(lines, tokens, strict=True):
            line[: len(row)] = torch.from_numpy(np.array(row, np.int64))
        return lines

    inputs, labels = [row for _, row, _ in examples], [row for _, _, row in examples]
    if not seq2seq:
        labels = [np.concatenate([np.full(len(row), -100), target]) for row, target in zip(inputs, labels, strict=True)]
        inputs = [np.concatenate([row, target]) for _, row, target in examples]
    tokens = padded(inputs, 0)
    batch = {"input_ids": tokens, "attention_mask": (tokens > 0).long(), "labels": padded(labels, -100)}
    return batch | {"task_ids": torch.tensor([task for task, _, _ in examples])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_side_arguments(parser)
    parser.add_argument("--method", default="", choices=("", *PEFT_METHODS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    source = rows_of(arguments)
    model = load_model(arguments.backbone, arguments.prompt, len(source.caches), arguments.method)
    model.train()
    seq2seq = model.config.is_encoder_decoder
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.3)
    seconds = []
    for step in steps_of(arguments):
        start = time.perf_counter()
        batch = collate(rows.drawn(source, step), seq2seq)
        if arguments.method:  # not of many tasks
            del batch["task_ids"]
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - start)
    told = {"loss": loss.item(), "trained": sum(parameter.numel() for parameter in trained)}
    finish({"seconds": seconds[arguments.warmup :], "steps": list(steps_of(arguments))[arguments.warmup :], **told})


if __name__ == "__main__":
    main()
