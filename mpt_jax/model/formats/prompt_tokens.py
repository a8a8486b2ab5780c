"""Prompts as vocabulary: a Hugging Face folder whose input embedding has a row, and whose tokenizer a token, for each prompt position.

Token ids in front of a text then are the prompted model, for every engine that takes ids. P prompt positions, D model width, V vocabulary.
"""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpt_jax.data.vocabulary import PiecesVocabulary, Vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model.families import family_of
from mpt_jax.model.formats import huggingface_folder, huggingface_tokenizer, prompt_tokenizer
from mpt_jax.model.formats.arrays import FLOAT_TYPES, Index, LazyArray
from mpt_jax.model.formats.folder_writer import write_json
from mpt_jax.regular_files import MOST_JSON_BYTES, parse_json, read_regular

EMBEDDING, OUTPUT = "token_embedder/embedding", "decoder/logits_dense/kernel"
GENERATION, TEXTS, CARD = "generation_config.json", "prompts.json", "README.md"
TYPES = ("float16", "bfloat16", "float32")


class Task(NamedTuple):
    """A prompt (P, D) float32 of a task, with the vocabulary as the run that trained it used it (its cue), and what a card tells of it."""

    name: str
    prompt_PD: np.ndarray
    vocabulary: Vocabulary
    told: Mapping[str, Any]


def write(folder: str, config: Any, arrays: Mapping[str, LazyArray], vocabulary: str, tasks: Sequence[Task], base: str) -> None:
    """Writes the folder: weights, tokenizer, generation_config.json that forbids the new ids, prompts.json and a card.

    vocabulary: path of the backbone's. Raises UserError for prompts that the type of the weights cannot hold, and for names of tasks that
    become one.
    """
    decoder_only = family_of(config).decoder_only
    stems = _stems([task.name for task in tasks])
    embedding = arrays[EMBEDDING]
    rows, tokens, texts = [], [], {}
    ends = _ends(tasks)
    for stem, task in zip(stems, tasks, strict=True):
        _check_values(task, embedding.dtype, config)
        own = [f"<{stem}_{number}>" for number in range(len(task.prompt_PD))]
        rows.append(task.prompt_PD)
        tokens += own
        start = "".join(_text(task.vocabulary, number) for number in task.vocabulary.frame.input_start)
        texts[task.name] = {"before": "".join(own) + start, "after": "".join(ends.get(task.vocabulary.frame.input_end, ()))}
    for ids, own in ends.items():
        every = slice(0, embedding.shape[1])
        rows += [embedding.load(np.float32, (slice(number, number + 1), every)) for number in ids]
        tokens += own
    added_ND = np.concatenate(rows)
    copied = None if hasattr(config, "encoder") else _silent(tasks[0].vocabulary, config.vocab_size)
    wide, weights = _wider(config, arrays, added_ND, copied)
    huggingface_folder.write(folder, wide, weights, vocabulary)
    for name in ("spiece.model", *huggingface_tokenizer.BESIDE[1:3]):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    prompt_tokenizer.write(folder, tasks[0].vocabulary, config.vocab_size, tokens, decoder_only)
    if copied is not None:
        _forbid(folder, range(config.vocab_size, config.vocab_size + len(tokens)))
    _write_texts(folder, texts, config.vocab_size, [task.told for task in tasks])
    with open(os.path.join(folder, CARD), "w", encoding="utf-8") as file:
        file.write(_card(base, tasks, texts, decoder_only, copied, embedding))


def _stems(names: Sequence[str]) -> list[str]:
    """Names of tasks as they stand in tokens. UserError where two become one."""
    stems = [re.sub(r"[^\w.#-]", "_", name) for name in names]
    for number, stem in enumerate(stems):
        first = stems.index(stem)
        if first != number:
            message = f"the tasks {names[first]!r} and {names[number]!r} would both have the tokens <{stem}_0> and on"
            raise UserError(f"{message}: convert them one by one with --task.")
    return stems


def _text(vocabulary: Vocabulary, number: int) -> str:
    """The text of a token that stands in front of every input."""
    assert isinstance(vocabulary, PiecesVocabulary)
    return str(vocabulary.token(number))


def _ends(tasks: Sequence[Task]) -> dict[tuple[int, ...], list[str]]:
    """Tokens of their own for the cues of decoder-only models, by the cue's ids: a tokenizer might join a cue with the text's end."""
    cues = dict.fromkeys(task.vocabulary.frame.input_end for task in tasks if task.vocabulary.continues)
    found = [ids for ids in cues if ids]
    return {ids: [f"<cue_{which}_{number}>" for number in range(len(ids))] for which, ids in enumerate(found)}


def _check_values(task: Task, dtype: np.dtype, config: Any) -> None:
    """Raises UserError where a prompt is beyond what the type of the weights holds, also times what the model multiplies rows with."""
    scale = getattr(getattr(config, "encoder", config), "lookup_scale", 1.0)
    largest, most = float(np.abs(task.prompt_PD).max()) * scale, _largest(dtype)
    if largest > most:
        said = f"the prompt of task {task.name!r} has numbers up to {largest:.4g} where the model reads it, {dtype} holds up to {most:.5g}"
        raise UserError(f"{said}: give a --backbone in float32 or bfloat16.")


def _largest(dtype: Any) -> float:
    """The largest number of a type of weights."""
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).max)


def _appended(lazy: LazyArray, added_ND: np.ndarray) -> LazyArray:
    """An array with more rows at its end."""
    size = lazy.shape[0]

    def fill(out: np.ndarray, index: Index) -> None:
        rows, columns = index
        old = max(min(rows.stop, size) - rows.start, 0)
        if old:
            lazy.fill(out[:old], (slice(rows.start, rows.start + old), columns))
        out[old:] = added_ND[max(rows.start - size, 0) : max(rows.stop - size, 0), columns]

    return dataclasses.replace(lazy, shape=(size + len(added_ND), *lazy.shape[1:]), fill=fill, origin=None)


def _scaled(lazy: LazyArray, scale: float) -> LazyArray:
    """An array times a number, worked out in float32."""

    def fill(out: np.ndarray, index: Index) -> None:
        out[...] = lazy.read(np.float32, index) * np.float32(scale)

    return dataclasses.replace(lazy, fill=fill, origin=None)


def _silent(vocabulary: Vocabulary, size: int) -> int:
    """An id below ``size`` that no answer has and that ends none: one without a token, padding, the start, another special token.

    Raises UserError where there is none: a copy of the row of an end would make answers shorter.
    """
    special = vocabulary.special_ids() if isinstance(vocabulary, PiecesVocabulary) else []
    for number in (vocabulary.size, vocabulary.pad_id, *vocabulary.start, *special):
        if number < size and number not in vocabulary.ends:
            return number
    message = f"every special token of vocabulary {vocabulary.path!r} ends a text, and all its {size:,} rows have tokens"
    raise UserError(f"{message}: nothing would keep the new ids out of answers. Use --to npz or --to peft instead.")


def _wider(config: Any, arrays: Mapping[str, LazyArray], added_ND: np.ndarray, copied: int | None) -> tuple[Any, dict[str, LazyArray]]:
    """(config, arrays) with the new rows. The output is no longer the embedding, so that no prompt is an output row.

    An output row of a new id is a copy of that of the id ``copied``. T5Gemma's encoder has a table of its own (copied None):
    only that grows, and its decoder has no new ids at all.
    """
    found, size = dict(arrays), config.vocab_size + len(added_ND)
    found[EMBEDDING] = _appended(arrays[EMBEDDING], added_ND)
    if copied is None:
        return dataclasses.replace(config, name="custom", encoder=dataclasses.replace(config.encoder, vocab_size=size)), found
    if config.logits_via_embedding:  # T5 v1.0 scales what its output reads
        scale = 1.0 if family_of(config).decoder_only else config.d_model**-0.5
        output = arrays[EMBEDDING] if scale == 1 else _scaled(arrays[EMBEDDING], scale)
    else:
        output = arrays[OUTPUT].transposed()
    row_1D = output.load(np.float32, (slice(copied, copied + 1), slice(0, output.shape[1])))
    found[OUTPUT] = _appended(output, np.repeat(row_1D, len(added_ND), axis=0)).transposed()
    return dataclasses.replace(config, name="custom", vocab_size=size, logits_via_embedding=False), found


def _forbid(folder: str, ids: range) -> None:
    """transformers' `generate` never writes these ids."""
    path = os.path.join(folder, GENERATION)
    write_json(path, parse_json(read_regular(path, MOST_JSON_BYTES), path) | {"suppress_tokens": list(ids)})


def _write_texts(folder: str, texts: Mapping[str, Any], first_id: int, told: Sequence[Mapping[str, Any]]) -> None:
    tasks = {name: {**text, **more} for (name, text), more in zip(texts.items(), told, strict=True)}
    with open(os.path.join(folder, TEXTS), "w", encoding="utf-8") as file:
        json.dump({"first_id": first_id, "tasks": tasks}, file, indent=2, ensure_ascii=False)
        file.write("\n")


def _card(base: str, tasks: Sequence[Task], texts: Mapping, decoder_only: bool, copied: int | None, embedding: LazyArray) -> str:
    """Markdown with the YAML head that model hubs read."""
    norms = np.concatenate([np.linalg.norm(task.prompt_PD, axis=1) for task in tasks])
    rows_ND = embedding.load(np.float32, (slice(0, min(1000, embedding.shape[0])), slice(0, embedding.shape[1])))
    usual = float(np.median(np.linalg.norm(rows_ND, axis=1)))
    largest = max(float(np.abs(task.prompt_PD).max()) for task in tasks)
    fits = [name for name in TYPES if largest <= _largest(FLOAT_TYPES[name])]
    lines = [
        "---", f"base_model: {json.dumps(base)}", "tags: [prompt-tuning, mpt_jax, tokens]", "---", "",
        f"# {base} with the prompts of {len(tasks)} tasks as tokens", "",
        "Put a task's text in front of an input" + (", and its second text after it" if decoder_only else "") + ". Each `<...>` is one "
        "token, whose embedding is one vector of the prompt. Rows of different tasks may share a batch. The same texts are in "
        "`prompts.json`.", "",
        f"The vectors have norms of {norms.min():.3g} to {norms.max():.3g} (a token's: about {usual:.3g}) and fit {', '.join(fits)}.", "",
    ]  # fmt: skip
    said = [
        f"The ids of these tokens must never be answers. `generate` of transformers reads that in {GENERATION}; an engine that does not "
        f"sees, as output row of each of them, a copy of the row of id {copied}. CTranslate2: `suppress_sequences=[[token], …]`. "
        "Probabilities straight from the logits are lower than this package's, since the sum over ids includes these rows."
    ]
    if copied is None:
        said = ["The decoder has no output for these tokens."]
    lines += [*said, "", "```python", _use(decoder_only), "```", ""]
    if decoder_only:
        lines += ["An answer begins with a space. Fill a batch up on the left.", ""]
    for task in tasks:
        told = ", ".join(f"{name} {value}" for name, value in task.told.items())
        lines += [f"## {task.name}", "", *([told, ""] if told else []), f"`{texts[task.name]['before']}`", ""]
        if texts[task.name]["after"]:
            lines += [f"and after the input `{texts[task.name]['after']}`", ""]
    return "\n".join(lines)


def _use(decoder_only: bool) -> str:
    auto = "AutoModelForCausalLM" if decoder_only else "AutoModelForSeq2SeqLM"
    answers = "[:, batch['input_ids'].shape[1]:]" if decoder_only else ""
    return (
        "import json\n"
        f"from transformers import AutoTokenizer, {auto}\n"
        'folder = "THIS_FOLDER"\n'
        f"tokenizer, model = AutoTokenizer.from_pretrained(folder), {auto}.from_pretrained(folder)\n"
        f'tasks = json.load(open(f"{{folder}}/{TEXTS}"))["tasks"]\n'
        'rows = [("TASK", "an input"), ("ANOTHER", "another")]\n'
        'texts = [tasks[task]["before"] + text + tasks[task]["after"] for task, text in rows]\n'
        'batch = tokenizer(texts, return_tensors="pt", padding=True)\n'
        f"answers = model.generate(**batch, do_sample=False, max_new_tokens=16){answers}\n"
        "print(tokenizer.batch_decode(answers, skip_special_tokens=True))"
    )
