"""Teacher outputs on disk: written whole or not at all, read back to the bit, damage named."""

import random
import resource

import numpy as np
import pytest
from tiny_data import sized_cache

from mpt_jax.data.batches import BatchSpec, make_batch
from mpt_jax.data.sampler import Stream
from mpt_jax.data.teacher_cache import Layout, TeacherOutputs
from mpt_jax.errors import UserError

LAYOUT = Layout(("encoder", "decoder"), width=4, prefix=2, top=3, whole=False, dtype="float16")
SPEC = BatchSpec(8, 4, 4, (4,), (4,))


def computed(cache, rows, layout=LAYOUT, longest=(8, 4)):
    """Padded random arrays by row, as a device would give them; what lies after a row's own tokens is 9."""
    for row in rows:
        random = np.random.default_rng(int(row))
        lines = {}
        for file, (shape, dtype) in layout.files().items():
            own = layout.tokens(file, min(cache.input_lengths[row], longest[0]), min(cache.target_lengths[row], longest[1]))
            padded = np.full((layout.tokens(file, *longest), *shape), 9, dtype)
            padded[:own] = random.integers(0, 8, (own, *shape))
            lines[file] = padded
        yield int(row), lines


def lengths(cache, rows):
    return np.minimum(cache.input_lengths[rows], 8), np.minimum(cache.target_lengths[rows], 4)


def written(folder, cache, rows, layout=LAYOUT):
    outputs = TeacherOutputs(folder, {"task": cache.name, "n": 1}, layout, cache.rows)
    outputs.write(rows, *lengths(cache, rows), computed(cache, rows, layout))
    return outputs


def test_rows_come_back_in_micro_batches_with_zeros_after_them(tmp_path):
    cache = sized_cache(tmp_path, 12, longest=12)
    outputs = written(tmp_path / "told", cache, np.array([1, 4, 6]))
    outputs.write(np.array([0, 11]), *lengths(cache, np.array([0, 11])), computed(cache, [11, 0]))
    assert outputs.missing(np.arange(12)).tolist() == [2, 3, 5, 7, 8, 9, 10]
    again = TeacherOutputs(tmp_path / "told", outputs.key, LAYOUT, cache.rows)
    stream = Stream(0, (cache.with_teacher(again),), (0,), 5, subset=(np.array([0, 1, 4, 6, 11]),))
    batch = make_batch([stream], 0, SPEC, 1)
    assert cache.teacher is None
    seen = 0
    for micro in batch.micro:
        assert micro["teacher_encoder_BYD"].shape == (4, 2 + micro["inputs_BL"].shape[1], 4)
        assert micro["teacher_encoder_BYD"].dtype == np.float16 and micro["teacher_ids_BTA"].dtype == np.int32
        for slot in np.flatnonzero(micro["input_length_B"]):
            tokens = micro["inputs_BL"][slot]
            row = next(row for row in (0, 1, 4, 6, 11) if cache.inputs(row)[0] == tokens[0])
            told = dict(computed(cache, [row]))[row]
            inputs, targets = (int(value[0]) for value in lengths(cache, np.array([row])))
            encoder = micro["teacher_encoder_BYD"][slot]
            np.testing.assert_array_equal(encoder[: 2 + inputs], told["encoder"][: 2 + inputs])
            assert not encoder[2 + inputs :].any()
            for file, name in (("decoder", "teacher_decoder_BYD"), ("logp", "teacher_logp_BTA"), ("tail", "teacher_tail_BT")):
                np.testing.assert_array_equal(micro[name][slot][:targets], told[file][:targets])
                assert not micro[name][slot][targets:].any()
            seen += 1
    assert seen == 5


def test_what_is_kept_follows_the_layout():
    assert list(LAYOUT.shapes(4, 8, 2)) == [f"teacher_{name}" for name in ("encoder_BYD", "decoder_BYD", "logp_BTA", "ids_BTA", "tail_BT")]
    assert Layout(("encoder", "decoder"), 4, 0, 0, False, "float32").shapes(2, 8, 3) == {
        "teacher_encoder_BYD": ((2, 8, 4), "float32"),
        "teacher_decoder_BYD": ((2, 3, 4), "float32"),
    }
    assert Layout((), 0, 0, 9, True, "float16").shapes(2, 8, 3) == {"teacher_logp_BTA": ((2, 3, 9), "float32")}
    assert LAYOUT.row_bytes(np.array([5, 6]), np.array([2, 3])) == (2 + 5 + 2 + 6 + 5) * 4 * 2 + 5 * (3 * 8 + 4)


def test_a_stack_of_another_name_is_kept_over_the_targets():
    """A decoder-only network has its decoder's states alone."""
    layout = Layout(("decoder",), 4, 2, 0, False, "float32")
    assert layout.shapes(2, 8, 3) == {"teacher_decoder_BYD": ((2, 3, 4), "float32")}


def test_a_kill_while_writing_leaves_no_part(tmp_path):
    cache = sized_cache(tmp_path, 12)

    def interrupted():
        yield from computed(cache, [3])
        raise KeyboardInterrupt

    outputs = TeacherOutputs(tmp_path / "told", {"task": "toy"}, LAYOUT, cache.rows)
    with pytest.raises(KeyboardInterrupt):
        outputs.write(np.array([3, 5]), *lengths(cache, np.array([3, 5])), interrupted())
    assert list(outputs.folder.iterdir()) == []
    assert TeacherOutputs(tmp_path / "told", {"task": "toy"}, LAYOUT, cache.rows).missing(np.array([3])).tolist() == [3]


def test_a_damaged_part_is_named(tmp_path):
    cache = sized_cache(tmp_path, 12)
    outputs = written(tmp_path / "told", cache, np.array([1, 4]))
    file = next(outputs.folder.glob("part-*")) / "decoder.npy"
    held = bytearray(file.read_bytes())
    held[-1] ^= 1
    file.write_bytes(held)
    with pytest.raises(UserError, match=r"decoder.npy' does not match its checksum: delete '.*part-"):
        TeacherOutputs(tmp_path / "told", outputs.key, LAYOUT, cache.rows)


def test_a_flipped_bit_anywhere_in_a_part_is_named(tmp_path):
    cache = sized_cache(tmp_path, 12)
    outputs = written(tmp_path / "told", cache, np.array([1, 4]))
    draw, files = random.Random(3), sorted(next(outputs.folder.glob("part-*")).iterdir())
    for _ in range(120):
        path = draw.choice(files)
        whole = path.read_bytes()
        held = bytearray(whole)
        held[draw.randrange(len(held))] ^= 1 << draw.randrange(8)
        path.write_bytes(held)
        with pytest.raises(UserError, match="cache file .*: delete '.*part-"):
            TeacherOutputs(tmp_path / "told", outputs.key, LAYOUT, cache.rows)
        path.write_bytes(whole)
    assert TeacherOutputs(tmp_path / "told", outputs.key, LAYOUT, cache.rows).missing(np.arange(12)).size == 10


def test_a_part_that_is_missing_a_file_or_is_cut_is_named(tmp_path):
    cache = sized_cache(tmp_path, 12)
    outputs = written(tmp_path / "told", cache, np.array([1, 4]))
    part = next(outputs.folder.glob("part-*"))
    for name in ("rows.npy", "logp.npy", "meta.json"):
        whole = (part / name).read_bytes()
        (part / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=f"{name}' "):
            TeacherOutputs(tmp_path / "told", outputs.key, LAYOUT, cache.rows)
        (part / name).unlink()
        with pytest.raises(UserError, match=f"{name}' (is missing|cannot be read)"):
            TeacherOutputs(tmp_path / "told", outputs.key, LAYOUT, cache.rows)
        (part / name).write_bytes(whole)


def test_a_disk_that_is_full_is_an_error_and_not_the_end_of_the_process(tmp_path):
    cache = sized_cache(tmp_path, 12)
    outputs = TeacherOutputs(tmp_path / "told", {"task": "toy"}, LAYOUT, cache.rows)
    rows = np.arange(12)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\): free space there"):
            outputs.write(rows, *lengths(cache, rows), computed(cache, rows))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(outputs.folder.iterdir()) == []


def test_states_that_the_dtype_cannot_hold_are_refused(tmp_path):
    cache = sized_cache(tmp_path, 12)
    outputs = TeacherOutputs(tmp_path / "told", {"task": "toy"}, LAYOUT, cache.rows)
    row, lines = next(computed(cache, [3]))
    lines["encoder"][0, 0] = np.inf
    with pytest.raises(UserError, match=r"task 'toy', row 3: .* not finite in float16; set DistillationSettings.cached_dtype to 'float32'"):
        outputs.write(np.array([3]), *lengths(cache, np.array([3])), [(row, lines)])
