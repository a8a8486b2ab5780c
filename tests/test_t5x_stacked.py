"""Stacked layers of T5X's scalable_t5 (formats/t5x_stacked.py)."""

import dataclasses

import numpy as np
import pytest
import tiny_families as tiny
from tiny_model import run_forward

from mpt_jax.convert import convert
from mpt_jax.errors import UserError
from mpt_jax.model import formats
from mpt_jax.model.families.family import Network
from mpt_jax.model.formats import t5x, t5x_stacked
from mpt_jax.model.formats.arrays import LazyArray, flatten, in_memory

CONFIG = tiny.t5(relative_bias_per_layer=True)
# what t5x/examples/scalable_t5/network.py (cc342d4) makes of CONFIG's sizes: D 16, 2 heads of 8, 3 + 2 layers
_ATTENTION = {"query/kernel": (16, 0, 2, 8), "key/kernel": (16, 0, 2, 8), "value/kernel": (16, 0, 2, 8), "out/kernel": (2, 0, 8, 16)}
_MLP = {"mlp/wi_0/kernel": (16, 0, 32), "mlp/wi_1/kernel": (16, 0, 32), "mlp/wo/kernel": (32, 0, 16)}
_NORMS = {"encoder": ("attention", "mlp"), "decoder": ("self_attention", "cross_attention", "mlp")}
_KINDS = {"encoder": ("attention",), "decoder": ("self_attention", "encoder_decoder_attention")}


def tree_of_t5x() -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    found: dict = {"token_embedder/embedding": (60, 16), "decoder/logits_dense/kernel": (16, 60)}
    for stack, layers in (("encoder", 3), ("decoder", 2)):
        each: dict = _MLP | {"relpos_bias/rel_embedding": (2, 0, 32)}
        each |= {f"pre_{name}_layer_norm/scale": (16, 0) for name in _NORMS[stack]}
        each |= {f"{kind}/{kernel}": shape for kind in _KINDS[stack] for kernel, shape in _ATTENTION.items()}
        found |= {f"{stack}/{stack}/{name}": tuple(size or layers for size in shape) for name, shape in each.items()}
        found[f"{stack}/{stack}_norm/scale"] = (16,)
    return found


def test_the_tree_is_that_of_scalable_t5(tmp_path):
    formats.write_backbone("t5x_scanned", str(tmp_path / "x"), CONFIG, tiny.weights(CONFIG))
    assert {name: lazy.shape for name, lazy in t5x.read("t5x", str(tmp_path / "x")).items()} == tree_of_t5x()


def test_written_stacked_and_read_again_it_is_the_same(tmp_path):
    formats.write_backbone("own", str(tmp_path / "own"), CONFIG, tiny.weights(CONFIG), "bytes")
    convert(str(tmp_path / "own"), "t5x_scanned", str(tmp_path / "x"))
    read, arrays, _ = formats.read_backbone(str(tmp_path / "x"))
    assert read == CONFIG
    restored = flatten(formats.restore(arrays))
    for path, array in flatten(tiny.weights(CONFIG)).items():
        np.testing.assert_array_equal(restored[path], array)


def test_a_bias_that_layers_share_is_written_for_each(tmp_path):
    config = tiny.t5()
    formats.write_backbone("t5x_scanned", str(tmp_path / "x"), config, tiny.weights(config))
    read, arrays, _ = formats.read_backbone(str(tmp_path / "x"))
    assert read == dataclasses.replace(config, relative_bias_per_layer=True)
    expected = run_forward(Network(config), tiny.weights(config), tiny.rows(config)).logits_BTV
    found = run_forward(Network(read), formats.restore(arrays), tiny.rows(config)).logits_BTV
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_heads_of_layers_that_are_not_stacked_are_joined():
    """scalable_t5 with scan_layers = False."""
    kernel_DHK = np.arange(16 * 2 * 8, dtype=np.float32).reshape(16, 2, 8)
    found = t5x_stacked.unstacked({"encoder/layers_0/attention/query/kernel": in_memory(kernel_DHK)}, "x")
    np.testing.assert_array_equal(found["encoder/layers_0/attention/query/kernel"].load(), kernel_DHK.reshape(16, 16))


def test_any_part_of_a_layer_can_be_read():
    """Devices read the parts that they hold, whether heads are cut in two or not."""
    arrays = {path: in_memory(array) for path, array in flatten(tiny.weights(CONFIG)).items()}
    stacked = t5x_stacked.stacked(CONFIG, arrays)
    found = t5x_stacked.unstacked(stacked, "x")
    for path in ("encoder/layers_2/attention/query/kernel", "decoder/layers_1/self_attention/out/kernel", "encoder/layers_1/mlp/wo/kernel"):
        for index in ((slice(3, 11), slice(0, 16)), (slice(0, 16), slice(5, 13)), (slice(2, 3), slice(15, 16))):
            np.testing.assert_array_equal(found[path].load(index=index), arrays[path].load()[index])
    out = stacked["decoder/decoder/self_attention/out/kernel"]
    np.testing.assert_array_equal(out.load(index=(slice(1, 2), slice(1, 2), slice(2, 5), slice(0, 16))), out.load()[1:2, 1:2, 2:5])


def test_a_stack_is_read_once_and_let_go():
    reads = []

    def fill(out, index):
        reads.append(1)
        out[...] = np.arange(12, dtype=np.float32).reshape(4, 3)[index]

    held = t5x_stacked.unstacked({"encoder/encoder/pre_mlp_layer_norm/scale": LazyArray((4, 3), np.dtype(np.float32), "x", fill)}, "x")
    for _ in range(2):
        for layer in range(3):
            np.testing.assert_array_equal(held[f"encoder/layers_{layer}/pre_mlp_layer_norm/scale"].load(), np.arange(4) * 3 + layer)
    assert len(reads) == 2


@pytest.mark.parametrize("shape", [(4,), (4, 0), (2, 1_000_000)])
def test_what_is_no_stack_of_layers_is_refused(shape):
    lazy = LazyArray(shape, np.dtype(np.float32), "x", lambda out, index: None)
    with pytest.raises(UserError, match=r"a file: encoder/encoder/mlp/wo/kernel has shape .*; 1 to 1000 layers along the second axis"):
        t5x_stacked.unstacked({"encoder/encoder/mlp/wo/kernel": lazy}, "a file")
