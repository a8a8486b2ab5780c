"""Every reader takes damaged files in its stride: it reads them or names what is wrong, in 2 s and 1 GiB, and never anything else.

READERS is the table: a row for each kind of file that users hand in. `mutations.py` damages the samples and tells how to make a
failure again: the seed and the number are in the message.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch_like
from fixture_folders import random_params
from mutations import Reader, hunt, report
from test_tokenizer_json import convert
from tiny_data import piece_file

from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.model import formats
from mpt_jax.model.families.t5_config import T5Config
from mpt_jax.model.formats import prompt_writers, prompts, safetensors
from mpt_jax.model.formats.files import Folder

SMALL = T5Config("custom", 48, 16, 2, 8, 24, 1, 1)
SEED = 20_261


def backbone(kind: str, name: str = "") -> Reader:
    """A backbone of one layer, written by us."""
    return Reader(lambda folder: _write_backbone(kind, folder / (name or "x")), lambda folder: _restore(folder / (name or "x")))


def _write_backbone(kind: str, folder: Path) -> None:
    formats.write_backbone(kind, folder, SMALL, random_params(SMALL))


def _restore(path: Path) -> None:
    digests: dict[str, bytes] = {}
    formats.restore(formats.read_backbone(path)[1], "bfloat16", digests=digests)


def _bin_folder(folder: Path, write: Callable) -> None:
    """As transformers wrote folders before safetensors: config.json and pytorch_model.bin."""
    _write_backbone("hf", folder / "x")
    _to_bin(folder / "x", "model.safetensors", "pytorch_model.bin", write)


def _to_bin(folder: Path, safe: str, name: str, write: Callable) -> None:
    arrays, _ = safetensors.read(Folder(folder), safe)
    write(folder / name, {key: lazy.load() for key, lazy in arrays.items()})
    (folder / safe).unlink()


def _msgpack(folder: Path) -> None:
    """A legacy checkpoint: one msgpack file with optimiser state."""
    from flax import serialization

    from mpt_jax.model.formats.arrays import unflatten

    tree = {
        "optimizer": {"target": unflatten(random_params(SMALL).items()), "state": {"step": np.int32(3), "param_states": {"x": np.ones(3)}}}
    }
    (folder / "checkpoint_3").write_bytes(serialization.msgpack_serialize(tree))


def _prompts() -> prompts.PromptFile:
    rng = np.random.default_rng(0)
    draw = [rng.normal(size=shape).astype(np.float32) for shape in ((1, 4, 6), (2, 4, 2), (2, 2, 6))]
    metadata = {
        "backbone": {"name": "nano", "fingerprint": "0" * 16},
        "runs": [{"task": task, "seed": 1, "scores": {"accuracy": 80.0}} for task in "ab"],
    }
    return prompts.PromptFile(*draw, np.zeros(2, np.int32), ("a", "b"), metadata)


def prompt(kind: str, name: str) -> Reader:
    """A bank, or one prompt, written by us; read and exported again, as a run that starts from it would."""

    def write(folder: Path) -> None:
        prompt_writers.write(kind, str(folder / name), _prompts() if kind != "npy" else _prompts().select([1]))

    return Reader(write, lambda folder: _use_prompts(folder / name), ("*README.md", "*.md"))


def _use_prompts(path: Path) -> None:
    held = prompts.read(path)
    held.compose()
    prompt_writers.card("npz", held)


def _bin_adapter(folder: Path) -> None:
    prompt_writers.write("peft", str(folder / "x"), _prompts())
    _to_bin(folder / "x", "adapter_model.safetensors", "adapter_model.bin", torch_like.write)


def _tokenizer(folder: Path) -> None:
    added = [{"id": n, "content": token, "special": True} for n, token in enumerate(("<pad>", "</s>", "<unk>"))]
    convert(piece_file(), folder, 100, added_tokens=added)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5TokenizerFast", "extra_ids": 100, "eos_token": "</s>"}')
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}, "additional_special_tokens": ["<extra_id_0>"]}')


def _pieces(folder: Path) -> None:
    shutil.copyfile(piece_file(), folder / "spiece.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "eos_token": "</s>"}')


def _encode(folder: Path) -> None:
    vocabulary = load_vocabulary(folder)
    vocabulary.decode(vocabulary.encode("Hello  world, ½ naïve 東京 🙂 <extra_id_0>"))


READERS = {
    "hugging_face": backbone("hf"),
    "hugging_face_bin": Reader(lambda folder: _bin_folder(folder, torch_like.write), lambda folder: _restore(folder / "x")),
    "hugging_face_bin_old": Reader(lambda folder: _bin_folder(folder, torch_like.write_old), lambda folder: _restore(folder / "x")),
    "t5x": backbone("t5x"),
    "msgpack": Reader(_msgpack, lambda folder: _restore(folder / "checkpoint_3")),
    "orbax": backbone("orbax"),
    "own": backbone("own"),
    "npz": prompt("npz", "x.npz"),
    "npy": prompt("npy", "x.npy"),
    "peft": prompt("peft", "x"),
    "peft_bin": Reader(_bin_adapter, lambda folder: _use_prompts(folder / "x"), ("*README.md",)),
    "tokenizer_json": Reader(_tokenizer, _encode),
    "sentencepiece": Reader(_pieces, _encode),
}
MANY_FILES = ("t5x", "orbax")  # a fifth of a second each


def test_mutations_are_read_or_refused(tmp_path):
    outcomes = hunt("test_mutated_files", READERS, SEED, 12, tmp_path)
    assert len(outcomes) == 12 * len(READERS)
    assert not report(outcomes, SEED), report(outcomes, SEED)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutations_are_read_or_refused(name, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    outcomes = hunt("test_mutated_files", [name], seed, 100 if name in MANY_FILES else 300, tmp_path)
    refused = sum(outcome.result == "refused" for outcome in outcomes)
    print(f"{name}: {len(outcomes)} mutations, {refused} refused, the slowest took {max(outcome.seconds for outcome in outcomes):.2f} s")
    assert not report(outcomes, seed), report(outcomes, seed)
    assert refused > len(outcomes) // 4  # the mutations reach the reader


@pytest.mark.long
def test_what_must_not_happen_is_found(tmp_path):
    """The harness itself: readers that raise, abort, hang, take time or memory are each reported, and the next one is read."""
    outcomes = hunt("bad_readers", ["raises", "aborts", "hangs", "is_slow", "takes_memory", "is_sound"], SEED, 1, tmp_path, silence=20.0)
    found = {outcome.reader: outcome.result for outcome in outcomes}
    assert found.pop("aborts").startswith("the process ended with -6")
    assert found == {"raises": "KeyError", "hangs": "hangs", "is_slow": "slow", "takes_memory": "MemoryError", "is_sound": "read"}
