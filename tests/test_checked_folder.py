"""Folders with sums: what opens is what was written, to the bit; everything else is a message that names the file."""

import json
import random

import numpy as np
import pytest
from tiny_data import sized_cache, token_cache

from mpt_jax.data.cache import read_cache
from mpt_jax.data.checked_folder import META, key_name, map_array, sum_of
from mpt_jax.errors import UserError


def content(cache):
    rows = [(cache.inputs(row).tolist(), cache.targets(row).tolist(), cache.extra(row)) for row in range(cache.rows)]
    return cache.meta, rows, None if cache.embedding is None else cache.embedding.tolist()


def test_a_flipped_bit_anywhere_is_named(tmp_path):
    """120 flips over all files of a cache: none opens as something else."""
    cache = token_cache(tmp_path, [([5 + row, 7, 1], [6, 1]) for row in range(30)], embedding=2)
    draw, files = random.Random(7), sorted(cache.folder.iterdir())
    for _ in range(120):
        path = draw.choice(files)
        held = bytearray(path.read_bytes())
        place = draw.randrange(len(held))
        held[place] ^= 1 << draw.randrange(8)
        whole = path.read_bytes()
        path.write_bytes(held)
        with pytest.raises(UserError, match="cache file .*(checksum|is not JSON|lacks one|wrong entry).*delete"):
            read_cache(cache.folder)
        path.write_bytes(whole)
    assert content(read_cache(cache.folder)) == content(cache)


def rewritten(folder, **changes):
    """`meta.json` with entries changed and its own checksum right: what no accident makes."""
    meta = json.loads((folder / META).read_text()) | changes
    (folder / META).write_text(json.dumps({**meta, "sum": sum_of(meta)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 5}, "does not fit the other files"),
        ({"rows": -1}, "does not fit the other files"),
        ({"rows": "4"}, "lacks one of its entries"),
        ({"key": {}}, "names no task and split"),
        ({"key": []}, "lacks one of its entries"),
        ({"files": {}}, "has no entry of the file 'inputs.npy'"),
        ({"files": {"../x": [1, ""]}}, "wrong entry of the file '../x'"),
        ({"files": {"inputs.npy": 5}}, "wrong entry of the file 'inputs.npy'"),
        ({"fingerprint": None}, "lacks one of its entries"),
    ],
)
def test_a_meta_that_somebody_wrote_by_hand(tmp_path, changes, message):
    folder = token_cache(tmp_path, [([5, 1], [6, 1])] * 4).folder
    rewritten(folder, **changes)
    with pytest.raises(UserError, match=message):
        read_cache(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "\xff", "[" * 100_000, '{"rows": ' + "1" * 5000 + "}"])
def test_a_meta_that_is_something_else(tmp_path, text):
    folder = token_cache(tmp_path, [([5, 1], [6, 1])]).folder
    (folder / META).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"meta\.json' (is not JSON|lacks one of its entries)"):
        read_cache(folder)


def test_arrays_of_another_kind(tmp_path):
    for name, array in (("float.npy", np.zeros(3)), ("wide.npy", np.zeros((3, 2), np.int32)), ("objects.npy", np.array([{}]))):
        np.save(tmp_path / name, array)
        with pytest.raises(UserError, match=f"{name}' (holds|is not an array)"):
            map_array(tmp_path / name, "int32")
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (99999999999999999999, 9), }".ljust(118)
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header)
    with pytest.raises(UserError, match=r"huge.npy' is not an array"):
        map_array(tmp_path / "huge.npy", "int32")


def test_a_cache_is_opened_while_others_are_put_in_its_place(tmp_path):
    """The folder vanishes for a moment, as when another process replaces it, and is another one afterwards."""
    import threading
    import time

    folder = sized_cache(tmp_path, 8).folder
    other = sized_cache(tmp_path / "other", 9, name="toy").folder
    aside = folder.with_name(".retired-x")
    folder.rename(aside)

    def put():
        time.sleep(0.02)
        other.rename(folder)

    thread = threading.Thread(target=put)
    thread.start()
    assert read_cache(folder).rows == 9
    thread.join()


def test_keys_are_named_by_their_content():
    assert key_name({"a": 1, "b": 2}) == key_name({"b": 2, "a": 1}) != key_name({"a": 1, "b": 3})
