"""Greedy answers to 256 rows of mixed tasks, each with its task's prompt, beside transformers.generate and CTranslate2.

    python -m benchmarks.decode --json FILE [--size smollm2_135m] [--repeats N --append]

Float32, rows 'short', 100 prompt vectors, at most 5 new tokens, random weights: no side ends early but by chance. The peer, transformers,
pads batches of 32 in the order given, as a user's loop does; its inputs are prompt and embedded tokens, as PEFT passes them on. CTranslate2
(T5 v1.1 alone, extra `parity`) has the prompts as rows of its embedding, and sorts the rows and makes batches of 32 itself.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import alternate, rows
from benchmarks.backbones import backbone_folder, config_of
from benchmarks.side import add_side_arguments, finish, rows_of
from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.formats import read_backbone

TASKS, NEW_TOKENS = 4, 5
PEERS = ("transformers", "ctranslate2", "ctranslate2_int8")  # the first is what ratios are to


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
    seq2seq = transformers.AutoConfig.from_pretrained(arguments.backbone).is_encoder_decoder
    kind = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(arguments.backbone, dtype=torch.float32, attn_implementation="sdpa").eval()
    embed = model.get_input_embeddings()
    prompt_NPD = torch.from_numpy(prompts(embed.weight.shape[1], arguments.prompt))

    @torch.no_grad()
    def batch(part: list) -> list:
        rows_ = [torch.cat([prompt_NPD[task], embed(torch.from_numpy(np.array(row, np.int64)))]) for task, row, _ in part]
        embedded = torch.zeros((len(part), max(map(len, rows_)), embed.weight.shape[1]))
        mask = torch.zeros(embedded.shape[:2], dtype=torch.long)
        for n, row in enumerate(rows_):
            place = slice(0, len(row)) if seq2seq else slice(embedded.shape[1] - len(row), None)  # decoder-only: padded in front
            embedded[n, place], mask[n, place] = row, 1
        made = model.generate(
            inputs_embeds=embedded, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1, pad_token_id=0
        )
        return list(made[:, 1 if seq2seq else 0 :].numpy())

    size = arguments.batch
    return _timed(arguments, lambda: [row for start in range(0, len(given), size) for row in batch(given[start : start + size])])


def answer_ctranslate2(arguments: argparse.Namespace, given: list) -> tuple[list[float], list]:
    """The same of CTranslate2, in float32 or with int8 weights."""
    import ctranslate2

    folder, first = _ctranslate2_folder(arguments)
    precision = "int8" if arguments.side.endswith("int8") else "float32"
    translator = ctranslate2.Translator(str(folder), device="cpu", compute_type=precision, inter_threads=1, intra_threads=arguments.threads)
    texts = [
        [f"<{token}>" for token in (*range(first + task * arguments.prompt, first + (task + 1) * arguments.prompt), *row)]
        for task, row, _ in given
    ]

    def answer() -> list:
        found = translator.translate_batch(texts, beam_size=1, max_decoding_length=NEW_TOKENS, max_batch_size=arguments.batch)
        return [[int(token[1:-1]) for token in one.hypotheses[0]] for one in found]

    return _timed(arguments, answer)


def _ctranslate2_folder(arguments: argparse.Namespace) -> tuple[Path, int]:
    """The backbone as CTranslate2 reads it, with the prompts as further embedding rows, which are never written; the first of their ids."""
    import ctranslate2
    import tokenizers
    import torch
    import transformers

    source = Path(arguments.backbone)
    first = transformers.AutoConfig.from_pretrained(source).vocab_size
    path = source.with_name(f"{source.name}_ct2_{TASKS}x{arguments.prompt}")
    if path.exists():
        return path, first
    model = transformers.T5ForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    model.config.tie_word_embeddings = False  # transformers says True of T5 v1.1 too, and would tie them now
    model.resize_token_embeddings(first + TASKS * arguments.prompt, mean_resizing=False)
    with torch.no_grad():
        model.shared.weight[first:] = torch.from_numpy(prompts(model.config.d_model, arguments.prompt)).flatten(0, 1)
        model.lm_head.weight[first:] = 0
    words = {f"<{n}>": n for n in range(len(model.shared.weight))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<2>"))
    named = {"pad_token": "<0>", "eos_token": "<1>", "unk_token": "<2>"}
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        model.save_pretrained(folder)
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
        ctranslate2.converters.TransformersConverter(folder).convert(f"{folder}/made")
        shutil.move(f"{folder}/made", path)
    return path, first


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
    parser.add_argument("--side", required=True, choices=(*PEERS, "ours"))
    parser.add_argument("--count", type=int, default=256)
    arguments = parser.parse_args(argv)
    given = [row for step in range(-(-arguments.count // arguments.batch)) for row in rows.drawn(rows_of(arguments), step)]
    if not isinstance(read_backbone(str(arguments.backbone))[0], T5Config):
        given = [(task, row[:-1], target) for task, row, target in given]  # a decoder-only network would go on after their end with ends
    answer = {"ours": answer_ours, "transformers": answer_transformers}.get(arguments.side, answer_ctranslate2)
    seconds, answers = answer(arguments, given[: arguments.count])
    finish({"seconds": seconds, "answers": [[int(token) for token in row if token > 0] for row in answers]})


def summarise(runs: dict[str, list[dict]]) -> dict:
    """Times, and the share of rows to which both sides gave the same tokens (random weights: near ties may fall either way)."""
    found = alternate.against(runs, "transformers")
    answers = {name: many[-1]["answers"] for name, many in runs.items() if name != "rate"}
    for name in answers:
        same = [ours == theirs for ours, theirs in zip(answers["ours"], answers[name], strict=True)]
        if name == "transformers":
            found["same_answers"] = round(float(np.mean(same)), 4)
        elif name.startswith("ctranslate2"):
            found[f"same_answers_{name}"] = round(float(np.mean(same)), 4)
    for many in runs.values():
        for run in many:
            run.pop("answers", None)
    return found


def main() -> None:
    if "--side" in sys.argv:
        side(sys.argv[1:])
        return
    parser = alternate.parser(__doc__, preload=True)
    parser.add_argument("--size", default="t5_1_1_base", help="row of the size table (default: %(default)s)")
    arguments = parser.parse_args()
    size, rows_name, prompt, count = ("tiny", "tiny", 10, 32) if arguments.small else (arguments.size, "short", 100, 256)
    folder = Path(arguments.folder)
    for n in range(TASKS):
        rows.token_cache(folder, rows_name, f"task{n}", seed=n)
    given = ["--backbone", backbone_folder(folder, size), "--folder", folder, "--rows", rows_name, "--tasks", TASKS]
    given += ["--prompt", prompt, "--count", count, "--steps", 1, "--batch", 32]
    config = config_of(size)
    peers = PEERS if isinstance(config, T5Config) and not config.logits_via_embedding else PEERS[:1]
    sides = {name: ["benchmarks.decode", "--side", name, *given] for name in (*peers, "ours")}
    alternate.compare(arguments, "decode", "small" if arguments.small else f"{size} {count} rows", sides, summarise)


if __name__ == "__main__":
    main()
