"""Prompts of several runs and files together: as tokens of a Hugging Face folder, and added, scaled and averaged.

P prompt positions, D model width.
"""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpt_jax.config import BackboneSettings
from mpt_jax.data.vocabulary import Vocabulary, load_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.backbone import backbone_folder, check_weights, fingerprint_of, framed, vocabulary_path
from mpt_jax.model.formats import prompt_tokens, prompts
from mpt_jax.model.formats.arrays import listed
from mpt_jax.model.formats.folder_writer import write_folder
from mpt_jax.model.formats.prompts import PromptFile
from mpt_jax.regular_files import shown

Named = Sequence[tuple[str, PromptFile]]  # name of the source (its last folder), what it holds
MOST_LETTERS, MOST_DEPTH = 10_000, 50  # of an expression
WORD = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|([^\W\d][\w.:/#]*)|\"([^\"]*)\"|([-+*()=]))")


def labelled(named: Named) -> dict[str, tuple[PromptFile, int]]:
    """Label -> (file, row) of every prompt: its task's name, SOURCE.TASK where several sources have it.

    Raises UserError for two that cannot be told apart, and for sources of other backbones or vocabularies.
    """
    counts = collections.Counter(label for _, held in named for label in held.task_names)
    found: dict[str, tuple[PromptFile, int]] = {}
    for name, held in named:
        for row, label in enumerate(held.task_names):
            full = label if counts[label] == 1 else f"{name}.{label}"
            if full in found:
                raise UserError(f"two sources have a prompt called {full!r}: rename one of their folders.")
            found[full] = (held, row)
    _check_same("the sources are of different backbones (fingerprint", {name: _known(held).get("fingerprint") for name, held in named})
    _check_same("the sources are of different backbones (width", {name: held.width for name, held in named})
    vocabularies = {name: _setting(held, "backbone", "vocabulary") for name, held in named}
    _check_same("the sources were trained with different vocabularies (VOCABULARY", vocabularies)
    return found


def _check_same(message: str, values: Mapping[str, Any]) -> None:
    """Raises UserError where two of the values that are known differ."""
    known = {name: value for name, value in values.items() if value is not None}
    if len(set(known.values())) > 1:
        raise UserError(f"{message} {', '.join(f'{name}: {shown(value)}' for name, value in known.items())}): convert them apart.")


def chosen(found: Mapping[str, tuple[PromptFile, int]], task: str | None) -> dict[str, tuple[PromptFile, int]]:
    """The prompts of --task, all without it. Raises UserError for a label that is not there."""
    wanted = [label.strip() for label in task.split(",")] if task else list(found)
    wrong = next((label for label in wanted if label not in found), None)
    if wrong is not None:
        raise UserError(f"--task {wrong!r} is not among the prompts of the sources: {listed(found)}.")
    return {label: found[label] for label in wanted}


def _known(held: PromptFile) -> Mapping[str, Any]:
    return held.metadata.get("backbone", {})


def write_tokens(output: str, named: Named, task: str | None = None, backbone: str | None = None) -> list[str]:
    """Writes the prompts as tokens (model/formats/prompt_tokens.py) of a Hugging Face folder; returns its files.

    backbone: name or folder, where the sources do not tell it. Raises UserError for prompts of another backbone.
    """
    found = chosen(labelled(named), task)
    facts = next((_known(held) for _, held in named if _known(held).get("fingerprint")), _known(named[0][1]))
    name = backbone or facts.get("name")
    if not name:
        raise UserError("--to tokens writes prompts into their backbone, and the source names none: give --backbone NAME.")
    config, arrays, own = formats.read_backbone(backbone_folder(name, "--backbone"))
    if config.d_model != named[0][1].width:
        raise UserError(f"--backbone {name!r} has width {config.d_model}, the prompts have width {named[0][1].width}.")
    if facts.get("fingerprint"):
        check_weights(facts, str(name), fingerprint_of(arrays), "these prompts were", "give the folder of the same weights as --backbone")
    given = next((setting for _, held in named if (setting := _setting(held, "backbone", "vocabulary"))), "")
    path = vocabulary_path(BackboneSettings(name, vocabulary=given), own)
    plain = load_vocabulary(path).within(config.vocab_size)
    if plain.size > config.vocab_size:
        raise UserError(f"vocabulary {path!r} has {plain.size:,} ids, --backbone {name!r} embeds {config.vocab_size:,}: name its own.")
    framed_by: dict[str, Vocabulary] = {}
    tasks = []
    for label, (held, row) in found.items():
        cue = _setting(held, "data", "cue") or ""
        vocabulary = framed_by.setdefault(cue, framed(plain, config, cue))
        tasks.append(prompt_tokens.Task(label, held.select([row]).compose()[0], vocabulary, _told(held, row)))
    return write_folder(output, lambda folder: prompt_tokens.write(folder, config, arrays, path, tasks, str(name)))


def _setting(held: PromptFile, group: str, name: str) -> str | None:
    """A setting of the run that trained the prompts; None where it is not known."""
    found: Any = held.metadata.get("settings")
    for key in (group, name):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _told(held: PromptFile, row: int) -> dict[str, Any]:
    """What a card tells of a prompt."""
    runs = held.metadata.get("runs", ())
    known = runs[row] if len(runs) == len(held.task_names) else {}
    return {key: known[key] for key in ("seed", "learning_rate") if key in known} | dict(known.get("scores", {}))


def combined(text: str, named: Named) -> PromptFile:
    """The prompt that an expression over labels makes: "0.5*a + 0.5*b", "mean = 0.5*a + 0.5*b" (its name), "2*(a - b)".

    Numbers, names, + - * and brackets; a name with other letters stands in quotation marks. It is parsed, never evaluated: the result is a
    weight for each label. Raises UserError for anything else, for unknown labels and for prompts of different lengths.
    """
    found = labelled(named)
    name, weights = _Expression(text).weights()
    unknown = next((label for label in weights if label not in found), None)
    if unknown is not None:
        raise UserError(f"--combine: {unknown!r} is not among the prompts of the sources: {listed(found)}.")
    parts = {label: found[label][0].select([found[label][1]]).compose()[0] for label in weights}
    shapes = {label: part.shape for label, part in parts.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"--combine adds prompts of one shape, these are {', '.join(f'{k}: {v}' for k, v in shapes.items())}.")
    _check_same("--combine adds prompts of one cue (CUE", {label: _setting(found[label][0], "data", "cue") for label in weights})
    prompt_PD = sum(np.float64(weight) * parts[label] for label, weight in weights.items())
    held = found[next(iter(weights))][0]
    kept = {key: held.metadata[key] for key in ("backbone", "vocabulary", "settings") if key in held.metadata}
    row = {"task": name, "seed": 0, "combined": {label: float(weight) for label, weight in weights.items()}}
    return prompts.plain(np.asarray(prompt_PD)[None], [name], {"source": text, "runs": [row], **kept})


class _Expression:
    """A sum of products of numbers and names: expression = term {(+|-) term}, term = factor {* factor}."""

    def __init__(self, text: str):
        if len(text) > MOST_LETTERS:
            raise UserError(f"--combine has {len(text):,} letters; at most {MOST_LETTERS:,} are read.")
        self.text, self.words, self.place, self.depth = text, [], 0, 0
        start = 0
        while start < len(text.rstrip()):
            word = WORD.match(text, start)
            if not word:
                raise self._wrong(f"{shown(text[start:].strip()[:20])} is not a number, a name or one of + - * ( )")
            number, plain, quoted, sign = word.groups()
            self.words.append(("number", number) if number else ("sign", sign) if sign else ("name", plain or quoted or ""))
            start = word.end()

    def weights(self) -> tuple[str, dict[str, float]]:
        """(name of the result, weight of each label)."""
        name = "combined"
        if [word[0] for word in self.words[:2]] == ["name", "sign"] and self.words[1][1] == "=":
            name, self.place = self.words[0][1], 2
        found = self._sum()
        if self.place < len(self.words):
            raise self._wrong(f"{self.words[self.place][1]!r} is not expected there")
        if not isinstance(found, dict):
            raise self._wrong("it is a number, and names no prompt")
        wrong = next((weight for weight in found.values() if not abs(weight) < 1e30), None)
        if wrong is not None:
            raise self._wrong(f"a weight of {wrong} is too large")
        return name, found

    def _wrong(self, reason: str) -> UserError:
        return UserError(f"--combine {self.text[:60]!r}: {reason}. It takes a sum such as \"0.5*a + 0.5*b\".")

    def _sign(self, *signs: str) -> str:
        """The next word if it is one of these signs, which is then passed; '' otherwise."""
        kind, text = self.words[self.place] if self.place < len(self.words) else ("end", "")
        if kind != "sign" or text not in signs:
            return ""
        self.place += 1
        return text

    def _sum(self) -> float | dict[str, float]:
        total = self._product()
        while sign := self._sign("+", "-"):
            other = self._product()
            if isinstance(total, dict) != isinstance(other, dict):
                raise self._wrong("a number cannot be added to a prompt")
            factor = 1 if sign == "+" else -1
            if isinstance(total, dict):
                total = {label: total.get(label, 0.0) + factor * other.get(label, 0.0) for label in {**total, **other}}
            else:
                total += factor * other
        return total

    def _product(self) -> float | dict[str, float]:
        total = self._factor()
        while self._sign("*"):
            other = self._factor()
            if isinstance(total, dict) and isinstance(other, dict):
                raise self._wrong("two prompts cannot be multiplied")
            if isinstance(total, dict) or isinstance(other, dict):
                number, vectors = (other, total) if isinstance(total, dict) else (total, other)
                total = {label: number * weight for label, weight in vectors.items()}
            else:
                total *= other
        return total

    def _factor(self) -> float | dict[str, float]:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise self._wrong(f"it is nested deeper than {MOST_DEPTH}")
        found = self._one()
        self.depth -= 1
        return found

    def _one(self) -> float | dict[str, float]:
        if self._sign("-"):
            found = self._factor()
            return {label: -weight for label, weight in found.items()} if isinstance(found, dict) else -found
        if self._sign("("):
            found = self._sum()
            if not self._sign(")"):
                raise self._wrong("a bracket is not closed")
            return found
        if self.place == len(self.words):
            raise self._wrong("it ends too early")
        kind, text = self.words[self.place]
        if kind == "sign":
            raise self._wrong(f"{text!r} is not expected there")
        self.place += 1
        return float(text) if kind == "number" else {text: 1.0}
