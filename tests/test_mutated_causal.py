"""Readers of decoder-only models take damaged files in their stride (mutations.py): they read them or name what is wrong."""

import random
from pathlib import Path

import pytest
import tiny_tokenizers
from mutations import Reader, hunt, report
from tiny_causal import flat_params, smaller

from mpt_jax.data.vocabulary import load_vocabulary
from mpt_jax.model import formats

SEED = 20_262
SMALL = {"vocab_size": 40, "d_model": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "d_ff": 32}


def _restore(path: Path) -> None:
    digests: dict[str, bytes] = {}
    formats.restore(formats.read_backbone(path)[1], "bfloat16", digests=digests)


def backbone(kind: str, name: str) -> Reader:
    """A backbone of two layers, written by us."""
    config = smaller(name, **SMALL)
    params = flat_params(config)
    return Reader(lambda folder: formats.write_backbone(kind, folder / "x", config, params), lambda folder: _restore(folder / "x"))


def _write_gguf(folder: Path) -> None:
    from tiny_gguf import write

    config = smaller("llama", **SMALL)
    write(folder / "x.gguf", "llama", config, flat_params(config), "Q4_1", tiny_tokenizers.tokenizer("bytes"))


def _read_gguf(folder: Path) -> None:
    _restore(folder / "x.gguf")
    _encode(folder / "x.gguf")


def _encode(path: Path) -> None:
    vocabulary = load_vocabulary(path).continuing("\nAnswer:")
    vocabulary.text_of(vocabulary.target_tokens("Hello  world, ½ naïve 東京 🙂 </s>"))
    vocabulary.input_tokens("<s>x")
    vocabulary.within(100)


def pieces(kind: str) -> Reader:
    """A tokenizer.json with its tokenizer_config.json and a generation_config.json."""

    def write(folder: Path) -> None:
        tiny_tokenizers.write(folder, kind)
        (folder / "generation_config.json").write_text('{"eos_token_id": [1, 4], "pad_token_id": 0, "bos_token_id": 2}')

    return Reader(write, _encode)


READERS = {
    "hugging_face_gemma": backbone("hf", "gemma3"),
    "hugging_face_llama": backbone("hf", "llama31"),
    "own_causal": backbone("own", "gemma2"),
    "gguf": Reader(_write_gguf, _read_gguf),
    **{f"pieces_{kind}": pieces(kind) for kind in ("bytes_cut", "llama", "unigram")},
}


def test_mutations_are_read_or_refused(tmp_path):
    outcomes = hunt("test_mutated_causal", READERS, SEED, 12, tmp_path)
    assert len(outcomes) == 12 * len(READERS)
    assert not report(outcomes, SEED), report(outcomes, SEED)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutations_are_read_or_refused(name, tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    outcomes = hunt("test_mutated_causal", [name], seed, 300, tmp_path)
    refused = sum(outcome.result == "refused" for outcome in outcomes)
    print(f"{name}: {len(outcomes)} mutations, {refused} refused, the slowest took {max(outcome.seconds for outcome in outcomes):.2f} s")
    assert not report(outcomes, seed), report(outcomes, seed)
    assert refused > len(outcomes) // 4  # the mutations reach the reader
