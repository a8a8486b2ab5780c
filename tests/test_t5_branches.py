"""T5's living branches against transformers: gated-silu (UL2), a bias in every layer (UMT5), other ids (CodeT5+).

Recorded golden values need no torch; ``python tests/test_t5_branches.py`` records golden_t5_branches.npz anew from transformers.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_families as tiny

from mpt_jax.errors import UserError
from mpt_jax.infer.likelihood import score_rows
from mpt_jax.model import formats
from mpt_jax.model.families.t5_config import T5_SIZES
from mpt_jax.model.formats import names

GOLDEN = Path(__file__).parent / "golden_t5_branches.npz"
CASES = [(name, prompted) for name in tiny.T5S for prompted in (False, True)]


def theirs(name: str, folder: Path, prompted: bool) -> dict[str, np.ndarray]:
    """What transformers makes of the Hugging Face folder that we write."""
    import transformers
    import transformers_side

    config = tiny.T5S[name]
    if not folder.exists():
        formats.write_backbone("hf", str(folder), config, tiny.weights(config))
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    if config.relative_bias_per_layer:  # transformers 5.0 to 5.23 scaled every UMT5's output, 5.24 asks scale_decoder_outputs
        model.config.tie_word_embeddings = model.config.scale_decoder_outputs = config.logits_via_embedding
    return transformers_side.encoder_decoder(model, config, prompted)


def golden(name: str, prompted: bool) -> dict[str, np.ndarray]:
    """The recorded values of a case."""
    file = np.load(GOLDEN)
    return {what: file[f"{name}/{prompted}/{what}"] for what in ("logits", "tokens")}


@pytest.mark.parametrize(("name", "prompted"), CASES)
def test_golden_values_of_transformers(name, prompted):
    expected = golden(name, prompted)
    assert len(np.unique(expected["tokens"])) > 2
    tiny.same(tiny.ours(tiny.T5S[name], prompted), expected)


@pytest.mark.parametrize(("name", "prompted"), CASES)
def test_golden_values_are_what_transformers_gives(name, prompted, tmp_path):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    tiny.same(theirs(name, tmp_path / "hf", prompted), golden(name, prompted))


@pytest.mark.parametrize("name", tiny.T5S)
@pytest.mark.parametrize("kind", ["hf", "own", "t5x"])
def test_written_and_read_again_it_is_the_same(name, kind, tmp_path):
    config = tiny.T5S[name]
    if kind == "t5x" and (config.decoder_start_id or name == "ul2"):
        with pytest.raises(UserError, match="--to t5x: T5X's files do not tell (decoder_start_id = 5|mlp_activations)"):
            formats.write_backbone(kind, str(tmp_path / "x"), config, tiny.weights(config))
        return
    formats.write_backbone(kind, str(tmp_path / "x"), config, tiny.weights(config))
    read, arrays, _ = formats.read_backbone(str(tmp_path / "x"))
    assert read == config
    for path, array in formats.arrays.flatten(tiny.weights(config)).items():
        np.testing.assert_array_equal(arrays[path].load(), array)


def test_parameters_are_counted_as_the_files_have_them():
    for config in (*tiny.T5S.values(), T5_SIZES["ul2"], T5_SIZES["umt5_small"], T5_SIZES["codet5p_220m"]):
        assert config.num_parameters() == sum(int(np.prod(entry.shape)) for entry in names.entries(config))
    assert round(T5_SIZES["ul2"].num_parameters() / 1e9, 2) == 19.59  # with an output matrix of its own


def test_the_start_token_counts_in_every_way_to_read_targets():
    """The first target's probability hangs on it alone."""
    config = tiny.T5S["codet5p"]
    other = dataclasses.replace(config, decoder_start_id=0)
    batch = tiny.rows(config)
    found = [np.asarray(score_rows(tiny.given(shape, False)[0], tiny.weights(config), None, batch)) for shape in (config, other)]
    assert np.abs(found[0] - found[1]).min() > 0.1


def test_files_that_start_differently_are_refused(tmp_path):
    config = tiny.T5S["codet5p"]
    formats.write_backbone("hf", str(tmp_path / "x"), config, tiny.weights(config))
    file = tmp_path / "x" / "generation_config.json"
    file.write_text(file.read_text().replace('"decoder_start_token_id": 5', '"decoder_start_token_id": 0'))
    with pytest.raises(UserError, match=r"decoder_start_token_id = 5, .*generation_config.json says 0.*Make them the same"):
        formats.read_backbone(str(tmp_path / "x"))


def test_an_end_other_than_the_tokenizers_is_refused(tmp_path):
    config = tiny.T5S["umt5"]
    formats.write_backbone("hf", str(tmp_path / "x"), config, tiny.weights(config))
    file = tmp_path / "x" / "config.json"
    file.write_text(file.read_text().replace('"eos_token_id": 1', '"eos_token_id": 3'))
    with pytest.raises(UserError, match=r"eos_token_id = 3; only 1"):
        formats.read_backbone(str(tmp_path / "x"))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        recorded = {}
        for case_name, with_prompt in CASES:
            for what, array in theirs(case_name, Path(temporary) / case_name, with_prompt).items():
                recorded[f"{case_name}/{with_prompt}/{what}"] = array
        np.savez_compressed(GOLDEN, **recorded)
