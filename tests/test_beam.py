"""Beam search (infer/beam.py) against transformers' `generate`: as recorded tokens, and live where torch is there.

``python tests/test_beam.py`` records golden_beam.npz anew from transformers.
"""

import itertools
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_families as tiny
from tiny_model import run_forward

from mpt_jax.infer.beam import beam_decode
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.model import formats
from mpt_jax.model.families.family import Rows

GOLDEN = Path(__file__).parent / "golden_beam.npz"
BACKBONES = {"t5": tiny.t5(), "llama": tiny.LLAMA, "t5gemma": tiny.T5GEMMAS["t5gemma_untied"]}
ENDS = tuple(range(1, 12))  # often enough for answers of every length
CASES = [(name, beams, penalty) for name in BACKBONES for beams, penalty in ((4, 1.0), (2, 0.0), (3, 2.0)) if beams == 4 or name == "t5"]


def theirs(name: str, beams: int, penalty: float) -> np.ndarray:
    """Tokens of transformers for three rows of unequal lengths; with a prompt each where there is an encoder."""
    import transformers
    import transformers_side

    config, search = BACKBONES[name], {"num_beams": beams, "length_penalty": penalty, "eos_token_id": list(ENDS)}
    if name == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
            rms_norm_eps=config.norm_epsilon, tie_word_embeddings=False,
        )).eval()  # fmt: skip
        model.load_state_dict(transformers_side.state_dict(config))
        return _ended(transformers_side.decoder_only(model, config, **search))
    with tempfile.TemporaryDirectory() as folder:
        formats.write_backbone("hf", f"{folder}/hf", config, tiny.weights(config))
        settings = transformers.AutoConfig.from_pretrained(f"{folder}/hf")
        if name == "t5gemma":
            settings.encoder.sliding_window -= 1  # see test_t5gemma.py
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(f"{folder}/hf", config=settings).eval()
        return _ended(transformers_side.encoder_decoder(model, config, True, **search)["tokens"])


def _ended(tokens_BT: np.ndarray) -> np.ndarray:
    """Zeros behind the first end, where transformers has ends."""
    ends_BT = np.isin(tokens_BT, ENDS)
    return np.where(np.cumsum(ends_BT, axis=1) - ends_BT > 0, 0, tokens_BT)


def ours(name: str, beams: int, penalty: float, **more) -> np.ndarray:
    """The same of our search."""
    config = BACKBONES[name]
    network, own = tiny.given(config, name != "llama")
    rows = tiny.rows(config)._replace(targets_BT=None, target_length_B=None)
    return np.asarray(beam_decode(network, tiny.weights(config), own, rows, tiny.STEPS, ENDS, beams, length_penalty=penalty, **more))


@pytest.mark.parametrize(("name", "beams", "penalty"), CASES)
def test_recorded_tokens_of_transformers(name, beams, penalty):
    expected = np.load(GOLDEN)[f"{name}/{beams}/{penalty}"]
    np.testing.assert_array_equal(ours(name, beams, penalty), expected)


def test_the_recorded_answers_end_early_and_late():
    """Otherwise they would show little: some end before the limit, some do not, and beams differ from greedy decoding."""
    golden = np.load(GOLDEN)
    lengths = {int((tokens_T != 0).sum()) for tokens_BT in golden.values() for tokens_T in tokens_BT}
    assert len(lengths) >= 3
    config = BACKBONES["t5"]
    network, own = tiny.given(config, True)
    greedy_BT = greedy_decode(network, tiny.weights(config), own, tiny.rows(config), tiny.STEPS, ENDS)
    assert not np.array_equal(greedy_BT, golden["t5/4/1.0"])


@pytest.mark.parametrize(("name", "beams", "penalty"), CASES)
def test_recorded_tokens_are_what_transformers_gives(name, beams, penalty):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    np.testing.assert_array_equal(theirs(name, beams, penalty), np.load(GOLDEN)[f"{name}/{beams}/{penalty}"])


@pytest.mark.parametrize("name", BACKBONES)
def test_one_beam_is_greedy_decoding(name):
    config = BACKBONES[name]
    network, own = tiny.given(config, name != "llama")
    rows = tiny.rows(config)._replace(targets_BT=None, target_length_B=None)
    np.testing.assert_array_equal(ours(name, 1, 1.0), greedy_decode(network, tiny.weights(config), own, rows, tiny.STEPS, ENDS))


@pytest.mark.slow
def test_with_enough_beams_it_finds_the_best_of_all_answers():
    """Of five tokens, one of them an end: every answer of up to 3 tokens is tried."""
    config = tiny.t5(vocab_size=5)
    network, rows = tiny.given(config, False)[0], tiny.rows(config)
    best = np.asarray(beam_decode(network, tiny.weights(config), None, rows, 3, (1,), 64, length_penalty=0.0))
    for row in range(3):
        tried = (answer for length in (1, 2, 3) for answer in itertools.product(range(5), repeat=length))
        found = [answer for answer in tried if 1 not in answer[:-1] and (len(answer) == 3 or answer[-1] == 1)]
        answers = np.array([answer + (0,) * (3 - len(answer)) for answer in found], np.int32)
        same = [row] * len(found)
        lengths = np.array([len(answer) for answer in found], np.int32)
        one = Rows(rows.inputs_BL[same], rows.input_length_B[same], answers, lengths)
        logp_BTV = jax.nn.log_softmax(run_forward(network, tiny.weights(config), one).logits_BTV)
        real_BT = np.arange(3) < one.target_length_B[:, None]
        scores = np.where(real_BT, np.take_along_axis(np.asarray(logp_BTV), answers[..., None], axis=-1)[..., 0], 0.0).sum(axis=1)
        assert best[row].tolist() == answers[scores.argmax()].tolist()


def test_a_row_ends_at_its_own_limit_whatever_the_others_do():
    limited = ours("t5", 4, 1.0, limit_B=np.array([2, 6, 0], np.int32))
    free = ours("t5", 4, 1.0)
    assert (limited[0, 2:] == 0).all() and (limited[2] == 0).all() and limited[0, 0] != 0
    np.testing.assert_array_equal(limited[1], free[1])


def test_limits_are_data():
    """Other limits and penalties do not compile anew."""
    ours("t5", 4, 1.0, limit_B=np.array([2, 6, 0], np.int32))
    before = beam_decode._cache_size()
    ours("t5", 4, 0.7, limit_B=np.array([6, 1, 3], np.int32))
    assert beam_decode._cache_size() == before


if __name__ == "__main__":
    np.savez_compressed(GOLDEN, **{"/".join(map(str, case)): theirs(*case) for case in CASES})
