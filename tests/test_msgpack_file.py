"""Msgpack files take a bounded number of steps, whatever they say."""

import msgpack
import pytest
from fixture_folders import random_params
from flax import serialization
from hostile import SMALL, load, refused

from mpt_jax.model.formats.arrays import unflatten

GOOD = serialization.msgpack_serialize({"target": unflatten(random_params(SMALL).items())})
MSGPACKS = {
    "maps in maps": (b"\x81\xa1a" * 200_000 + b"\xc0", "more than 32 maps in one another"),
    "arrays in arrays": (b"\x81\xa1a" + b"\x91" * 200_000 + b"\xc0", "more than 32 maps"),
    "an array of 2^32": (b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\xc0" * 5_000_000, "more than 200,000 values"),
    "a text of 4 GiB": (b"\x81\xa1a\xdb\xff\xff\xff\xff" + b"a" * 1000, "a text of 4,294,967,295 bytes"),
    "a name twice": (b"\x82\xa1a\x01\xa1a\x02", "has 'a' twice"),
    "a text that is not UTF-8": (b"\x81\xa1\xff\x01", "not UTF-8"),
    "a target that is a number": (msgpack.packb({"target": 3}), "holds no optimizer/target"),
    "a list for an optimizer": (msgpack.packb({"optimizer": [1]}), "holds no optimizer/target"),
    "pieces without a shape": (msgpack.packb({"target": {"a": {"__msgpack_chunked_array__": True, "chunks": 1}}}), "has the shape None"),
}


@pytest.mark.parametrize("name", MSGPACKS)
def test_msgpack_files_take_bounded_work(name, tmp_path):
    content, message = MSGPACKS[name]
    (tmp_path / "x").write_bytes(content)
    refused(lambda: load(tmp_path / "x"), message)


@pytest.mark.parametrize("name", ["layers_3000000", "layers_²", "layers_-1", "layers_01"])
def test_a_layer_far_beyond_the_others(name, tmp_path):
    tree = unflatten(random_params(SMALL).items())
    tree["encoder"][name] = tree["encoder"]["layers_0"]
    (tmp_path / "x").write_bytes(serialization.msgpack_serialize({"target": tree}))
    refused(lambda: load(tmp_path / "x"), f"encoder has the layers .*{name.split('_')[1]}.*missing")
