"""`mpt-jax serve` with transformers.generate behind its queue: the same HTTP and batches, prompts as tokens. benchmarks.serve starts it.

    python -m benchmarks.serve_peer RUN TOKENS     # a run folder, and the folder that convert --to tokens made of it
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from mpt_jax.infer.queries import Answer, Asked
from mpt_jax.serving import command
from mpt_jax.serving.batcher import Batcher
from mpt_jax.serving.settings import ServeSettings


def main() -> None:
    run, folder = sys.argv[1:]
    torch.set_num_threads(2)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    first = json.loads((Path(folder) / "prompts.json").read_text())["first_id"]

    @torch.no_grad()
    def compute(self: Batcher, given: Sequence[Asked]) -> list[Answer]:
        """Answers of rows, each with the tokens of its prompt in front."""
        length = given[0].source.model.own["bank/shared"].shape[1]
        starts = [first + length * one.source.rows.index(one.row) for one in given]
        rows = [[*range(start, start + length), *one.tokens] for start, one in zip(starts, given, strict=True)]
        tokens = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row)] = torch.tensor(row)
        limit = max(one.limit for one in given)
        made = model.generate(input_ids=tokens, attention_mask=(tokens > 0).long(), do_sample=False, num_beams=1, max_new_tokens=limit)
        return [Answer(one.answered(np.array(row[1:]))) for one, row in zip(given, made.tolist(), strict=True)]

    def warm(self: Batcher, asked: Asked) -> int:
        return len(self.compute([asked]))

    Batcher.compute, Batcher.warm = compute, warm
    command.run_serve([run], ServeSettings(port=0))


if __name__ == "__main__":
    main()
