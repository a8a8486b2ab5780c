"""The process that measures Hugging Face PEFT: its multitask prompt tuning over transformers' models, as its users would train it.

It imports its libraries, waits for a line with the seconds that it may take, and only then uses the card.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import MultitaskPromptTuningConfig, TaskType, get_peft_model

from benchmarks import rows
from benchmarks.accelerator import sizes
from benchmarks.accelerator.cases import FULL, TASKS, TINY, Case, Scale, chosen
from mpt_jax.config import Computation
from mpt_jax.data.sampler import Stream
from mpt_jax.model.families.family import Network

FAILURES = (RuntimeError, ValueError, TypeError)  # of one case: its line says so, and the others still run
CHUNKS = 3


def transformers_config(config: Any) -> transformers.PretrainedConfig:
    """The same shape for transformers; dropout off."""
    if hasattr(config, "num_decoder_layers"):
        return transformers.T5Config(
            vocab_size=config.vocab_size, d_model=config.d_model, d_kv=config.head_dim, d_ff=config.d_ff, num_heads=config.num_heads,
            num_layers=config.num_encoder_layers, num_decoder_layers=config.num_decoder_layers, dropout_rate=0.0,
            feed_forward_proj="gated-gelu" if config.gated else "relu", tie_word_embeddings=config.logits_via_embedding,
            decoder_start_token_id=0,
        )  # fmt: skip
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
        tie_word_embeddings=config.logits_via_embedding, attention_dropout=0.0,
    )  # fmt: skip


def load_model(config: Any, prompt: int, device: torch.device):
    """A frozen bfloat16 model of random weights, sdpa attention, with a multitask prompt that trains."""
    decoder_only = not hasattr(config, "num_decoder_layers")
    kind = transformers.LlamaForCausalLM if decoder_only else transformers.T5ForConditionalGeneration
    with torch.device(device):
        model = kind._from_config(transformers_config(config), dtype=torch.bfloat16, attn_implementation="sdpa")
    settings = MultitaskPromptTuningConfig(
        task_type=TaskType.CAUSAL_LM if decoder_only else TaskType.SEQ_2_SEQ_LM, num_tasks=TASKS, num_virtual_tokens=prompt,
        num_transformer_submodules=1, num_ranks=1,
    )  # fmt: skip
    return get_peft_model(model, settings).to(device)


def collate(examples: Sequence[tuple], decoder_only: bool) -> dict[str, torch.Tensor]:
    """Rows padded to the longest of them; padding, and inputs of a decoder-only model, are left out of the loss (-100)."""

    def padded(lines: list[np.ndarray], fill: int) -> torch.Tensor:
        found = torch.full((len(lines), max(map(len, lines))), fill, dtype=torch.long)
        for line, row in zip(found, lines, strict=True):
            line[: len(row)] = torch.from_numpy(np.array(row, np.int64))
        return found

    inputs, labels = [row for _, row, _ in examples], [row for _, _, row in examples]
    if decoder_only:
        joined = [np.concatenate([row, answer]) for row, answer in zip(inputs, labels, strict=True)]
        labels = [np.concatenate([np.full(len(row), -100), answer]) for row, answer in zip(inputs, labels, strict=True)]
        inputs = joined
    tokens = padded(inputs, 0)
    batch = {"input_ids": tokens, "attention_mask": (tokens > 0).long(), "labels": padded(labels, -100)}
    return batch | {"task_ids": torch.tensor([task for task, _, _ in examples])}


class Side:
    """What the cases share."""

    def __init__(self, folder: Path, scale: Scale, seconds: float):
        self.scale, self.start, self.seconds = scale, time.monotonic(), seconds
        self.caches = sizes.caches_of(folder, scale)
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.kind = torch.cuda.get_device_name() if self.cuda else "cpu"

    def wait(self) -> None:
        """Until the card has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def tell(self, case: Case, **found: Any) -> None:
        """Prints a case's line."""
        line = {"case": case.name, "side": case.side, "device": self.kind, **found}
        print(json.dumps(line | {"at_s": round(time.monotonic() - self.start, 1)}), flush=True)

    def reachable(self) -> float:
        """Operations a second of one large bfloat16 product."""
        size, times = self.scale.product, 10
        left, right = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        for number in range(3):
            if number == 2:
                self.wait()
                start = time.perf_counter()
            for _ in range(times):
                torch.matmul(left, right)
        self.wait()
        return 2.0 * size**3 * times / (time.perf_counter() - start)

    def measure(self, case: Case, rate: float) -> None:
        """Times whole updates: a batch in micro-batches whose gradients add up, then AdamW."""
        config, scale = sizes.config_of(case.size, self.scale.tiny), self.scale
        decoder_only = not hasattr(config, "num_decoder_layers")
        model = load_model(config, scale.prompt, self.device)
        model.train()
        optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.3)
        stream = rows.stream(self.caches, scale.batch)
        batches = [self._micro_batches(stream, step, decoder_only) for step in range(3)]

        def update(step: int) -> None:
            micro = batches[step % len(batches)]
            for part in micro:
                (model(**{name: array.to(self.device) for name, array in part.items()}).loss / len(micro)).backward()
            optimizer.step()
            optimizer.zero_grad()

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = self._chunks(update, len(batches))
        micro = [part for batch in batches for part in batch]
        needed, read = self._needed(config, stream, micro, len(batches))
        middle = statistics.median(seconds)
        self.tell(
            case,
            examples_per_s=round(scale.batch / middle, 2),
            seconds=round(middle, 5),
            spread=[round(min(seconds), 5), round(max(seconds), 5)],
            examples=scale.batch,
            micro_batches=len(batches[0]),
            input_tokens=read,
            **sizes.rates(self.kind, needed, middle, rate),
            peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 3) if self.cuda else None,
            attention=model.base_model.config._attn_implementation,
            versions={"torch": torch.__version__, "transformers": transformers.__version__},
        )

    def _micro_batches(self, stream: Stream, step: int, decoder_only: bool) -> list[dict[str, torch.Tensor]]:
        drawn, size = rows.drawn(stream, step), self.scale.micro
        return [collate(drawn[start : start + size], decoder_only) for start in range(0, len(drawn), size)]

    def _needed(self, config: Any, stream: Stream, micro: Sequence[dict], batches: int) -> tuple[dict[str, float], dict[str, float]]:
        """Operations of an update, as an implementation with a user's padding needs them, and input tokens."""
        drawn = [row for step in range(batches) for row in rows.drawn(stream, step)]
        parts = []
        for start, part in zip(range(0, len(drawn), self.scale.micro), micro, strict=True):
            these = drawn[start : start + self.scale.micro]
            lengths = np.array([len(row) for _, row, _ in these]), np.array([len(row) for _, _, row in these])
            shape = len(these), int(lengths[0].max())
            parts.append({
                "inputs_BL": np.empty(shape, np.int8), "targets_BT": np.empty((len(these), int(lengths[1].max())), np.int8),
                "input_length_B": lengths[0], "target_length_B": lengths[1], "task_id_B": part["task_ids"],
            })  # fmt: skip
        needed = sizes.operations(Network(config, Computation()), self.scale.prompt, parts, beside=False, textbook=True)
        found = ({name: value / batches for name, value in numbers.items()} for numbers in (needed, sizes.tokens(parts)))
        return tuple(found)

    def _chunks(self, update, batches: int) -> list[float]:
        """Seconds of an update, by chunk; each chunk takes every batch alike."""
        for _ in range(2):
            self.wait()
            start = time.perf_counter()
            for step in range(batches):
                update(step)
            self.wait()
            once = time.perf_counter() - start
        count, found = batches * max(1, min(round(self.scale.chunk_s / once), 50)), []
        for _ in range(CHUNKS):
            start = time.perf_counter()
            for step in range(count):
                update(step)
            self.wait()
            found.append((time.perf_counter() - start) / count)
        return found

    def run(self, cases: Sequence[Case]) -> None:
        """Measures one case after the other, as far as the seconds reach."""
        rate = self.reachable()
        for case in cases:
            left = self.seconds - (time.monotonic() - self.start)
            if not self.scale.tiny and case.seconds > left:
                self.tell(case, skipped=f"takes about {case.seconds:g} s, and {left:.0f} s are left")
                continue
            try:
                self.measure(case, rate)
            except FAILURES as error:
                self.tell(case, error=f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
            if self.cuda:
                torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    line = sys.stdin.readline()
    if line:
        Side(arguments.folder, TINY if arguments.tiny else FULL, float(line)).run(chosen(arguments.only)[1])


if __name__ == "__main__":
    main()
