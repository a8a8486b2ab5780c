"""Batches: nothing drawn is lost, everything fits its bucket, and any step can be reached at once."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_data import sized_cache, token_cache

from mpt_jax.data.batches import BatchSpec, batch_iterator, buckets, eval_batches, make_batch
from mpt_jax.data.sampler import Stream, draw
from mpt_jax.errors import UserError


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """A run on two tasks (bank rows 0 and 2), a run on one (bank row 1)."""
    folder = tmp_path_factory.mktemp("caches")
    first, second, third = (sized_cache(folder, size, f"task{size}") for size in (40, 25, 60))
    return (
        Stream(seed=1, caches=(first, second), bank_index=(0, 2), batch_size=10, mixing="stochastic"),
        Stream(seed=2, caches=(third,), bank_index=(1,), batch_size=7),
    )


SPEC = BatchSpec(
    input_length=32, target_length=8, micro_batch_size=4, input_buckets=(8, 16), target_buckets=(4,)
)


def rows_of(micro_batches):
    """(bank row, inputs, targets) of all rows that are not filler, sorted."""
    rows = []
    for micro in micro_batches:
        for inputs, targets, task in zip(
            micro["inputs_BL"], micro["targets_BT"], micro["task_id_B"], strict=True
        ):
            if inputs.any():
                rows.append((int(task), tuple(inputs[inputs > 0]), tuple(targets[targets > 0])))
    return sorted(rows)


def same(first, second):
    assert (first.step, first.examples, len(first.micro)) == (second.step, second.examples, len(second.micro))
    for one, two in zip(first.micro, second.micro, strict=True):
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_a_batch_holds_exactly_the_drawn_rows(streams):
    for step in range(20):
        drawn = []
        for stream in streams:
            for place, row in zip(*draw(stream, step), strict=True):
                cache = stream.caches[place]
                drawn.append((stream.bank_index[place], tuple(cache.inputs(row)), tuple(cache.targets(row))))
        batch = make_batch(streams, step, SPEC, 3)
        assert rows_of(batch.micro) == sorted(drawn)
        assert batch.examples == 17 and len(batch.micro) == 5
        assert (batch.cut_inputs, batch.cut_targets) == (0, 0)
        for task in range(3):
            mine = [row for row in drawn if row[0] == task]
            assert batch.examples_N[task] == len(mine)
            assert batch.input_tokens_N[task] == sum(len(row[1]) for row in mine)
            assert batch.target_tokens_N[task] == sum(len(row[2]) for row in mine)


def test_micro_batches_are_sorted_and_fit_their_buckets(streams):
    batch = make_batch(streams, 0, SPEC, 3)
    longest = []
    for micro in batch.micro:
        lengths = (micro["inputs_BL"] > 0).sum(axis=1), (micro["targets_BT"] > 0).sum(axis=1)
        for length_B, padded, sizes in (
            (lengths[0], micro["inputs_BL"].shape[1], SPEC.input_buckets),
            (lengths[1], micro["targets_BT"].shape[1], SPEC.target_buckets),
        ):
            assert padded == min(size for size in sizes if size >= length_B.max())
        keys = [pair for pair in zip(*lengths, strict=True) if pair[0]]
        assert keys == sorted(keys)
        longest.append(keys[-1])
        assert {array.dtype for array in micro.values()} == {np.dtype(np.int32)}
    assert longest == sorted(longest)
    last = batch.micro[-1]
    assert not any(last[name][1:].any() for name in last), (
        "17 rows in micro-batches of 4: three filler rows, all zero"
    )
    cells = sum(micro["inputs_BL"].size for micro in batch.micro)
    assert batch.input_padding == pytest.approx(1 - batch.input_tokens_N.sum() / cells)


def test_worked_example(tmp_path):
    cache = token_cache(tmp_path, [([5, 6, 7, 8, 9, 1], [4, 1]), ([5, 1], [4, 4, 4, 1]), ([6, 1], [3, 1])])
    stream = Stream(seed=0, caches=(cache,), bank_index=(1,), batch_size=3)
    spec = BatchSpec(
        input_length=4, target_length=3, micro_batch_size=2, input_buckets=(2,), target_buckets=(2,)
    )
    batch = make_batch([stream], 0, spec, 2)
    first, second = batch.micro
    assert first["inputs_BL"].tolist() == [[6, 1], [5, 1]]
    assert first["targets_BT"].tolist() == [[3, 1, 0], [4, 4, 1]]
    assert second["inputs_BL"].tolist() == [[5, 6, 7, 1], [0, 0, 0, 0]]
    assert second["targets_BT"].tolist() == [[4, 1], [0, 0]]
    assert second["task_id_B"].tolist() == [1, 0]
    assert (batch.cut_inputs, batch.cut_targets) == (1, 1)
    assert batch.input_tokens_N.tolist() == [0, 8] and batch.target_tokens_N.tolist() == [0, 7]
    assert batch.input_padding == pytest.approx(4 / 12) and batch.target_padding == pytest.approx(3 / 10)


def test_cutting_a_row_without_end_adds_none(tmp_path):
    cache = token_cache(tmp_path, [([5, 6, 7, 8], [4, 4, 4])])
    ((_, micro),) = eval_batches(cache, BatchSpec(3, 2, 1))
    assert micro["inputs_BL"].tolist() == [[5, 6, 7]] and micro["targets_BT"].tolist() == [[4, 4]]


def test_rows_of_a_run_do_not_depend_on_other_runs(streams):
    for step in (0, 11):
        alone = rows_of(make_batch(streams[1:], step, SPEC, 3).micro)
        together = [row for row in rows_of(make_batch(streams, step, SPEC, 3).micro) if row[0] == 1]
        assert alone == together


def test_embeddings_travel_with_their_rows(tmp_path):
    plain = sized_cache(tmp_path, 3, "plain")
    cache = token_cache(tmp_path, [([3 + row, 1], [4, 1]) for row in range(5)], embedding=6)
    stream = Stream(seed=0, caches=(cache, plain), bank_index=(0, 1), batch_size=9, mixing="equal")
    for micro in make_batch([stream], 2, SPEC, 2).micro:
        assert micro["embedding_BE"].dtype == np.float32
        for inputs, task, vector in zip(
            micro["inputs_BL"], micro["task_id_B"], micro["embedding_BE"], strict=True
        ):
            expected = inputs[0] - 3 if task == 0 and inputs.any() else 0
            assert vector.tolist() == [expected] * 6
    wide = token_cache(tmp_path, [([3, 1], [4, 1])], "wide", embedding=7)
    mixed = Stream(seed=0, caches=(cache, wide), bank_index=(0, 1), batch_size=9)
    with pytest.raises(UserError, match=r"widths \[6, 7\]"):
        make_batch([mixed], 0, SPEC, 2)


def test_smaller_micro_batches_for_long_rows_hold_the_same_rows_with_less_padding(streams):
    spec = dataclasses.replace(SPEC, smallest_micro_batch=1, part_cost=4)
    less = 0
    for step in range(10):
        whole, parts = make_batch(streams, step, SPEC, 3), make_batch(streams, step, spec, 3)
        assert rows_of(parts.micro) == rows_of(whole.micro) and parts.rows == whole.rows
        assert {len(micro["task_id_B"]) for micro in parts.micro} <= {4, 2, 1}
        assert parts.input_padding <= whole.input_padding
        less += parts.input_padding < whole.input_padding
    assert less
    with pytest.raises(UserError, match="smallest_micro_batch = 5: must be 0 .. micro_batch_size = 4"):
        dataclasses.replace(SPEC, smallest_micro_batch=5)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_iterator_resumes_exactly(streams, prefetch):
    straight = [make_batch(streams, step, SPEC, 3) for step in range(12)]
    iterator = batch_iterator(streams, SPEC, 3, prefetch=prefetch)
    for step in range(5):
        same(next(iterator), straight[step])
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"next_index": 5}
    rest = [next(iterator) for _ in range(4)]
    iterator.set_state(state)
    for batch, again in zip(rest, iterator, strict=False):
        same(batch, again)
    resumed = batch_iterator(streams, SPEC, 3, start_step=9, prefetch=prefetch)
    same(next(resumed), straight[9])
    fresh = batch_iterator(streams, SPEC, 3, prefetch=prefetch)
    fresh.set_state(state)
    same(next(fresh), straight[5])
    for opened in (iterator, resumed, fresh):
        opened.close()


def test_an_error_while_reading_ahead_reaches_the_caller(streams):
    iterator = batch_iterator(streams, SPEC, num_bank_rows=2)
    with pytest.raises(UserError, match="bank_index 2.*2 rows"):
        next(iterator)
    iterator.close()


def test_eval_batches_give_every_row_once(tmp_path):
    cache = sized_cache(tmp_path, 33)
    seen, cells = {}, 0
    for index_B, micro in eval_batches(cache, SPEC, task_id=2):
        cells += micro["inputs_BL"].size
        for index, inputs, targets, task in zip(
            index_B, micro["inputs_BL"], micro["targets_BT"], micro["task_id_B"], strict=True
        ):
            if index < 0:
                assert not inputs.any() and not targets.any() and task == 0
                continue
            assert index not in seen and task == 2
            seen[index] = inputs[inputs > 0].tolist()
            assert targets[targets > 0].tolist() == cache.targets(index).tolist()
    assert sorted(seen) == list(range(33))
    assert all(seen[row] == cache.inputs(row).tolist() for row in seen)
    assert cells < 33 * 32 * 0.9, "sorting by length must save padding"
    chosen = np.array([3, 30, 4])
    ((index_B, _),) = eval_batches(cache, SPEC, subset=chosen)
    assert sorted(index_B) == [-1, 3, 4, 30]
    assert list(eval_batches(cache, SPEC, subset=np.array([], int))) == []


def test_bucket_settings():
    assert buckets(100) == (16, 32, 48, 64, 80, 96, 100)
    assert buckets(16) == (16,) and buckets(5) == (5,)
    assert BatchSpec(256, 10, 8).input_buckets[-2:] == (224, 256)
    assert BatchSpec(256, 10, 8).target_buckets == (8, 10)
    assert BatchSpec(256, 128, 8, (300, 64, 64)).input_buckets == (64, 256)
    for name in ("input_length", "target_length", "micro_batch_size"):
        with pytest.raises(UserError, match=f"{name} = 0"):
            BatchSpec(**({"input_length": 1, "target_length": 1, "micro_batch_size": 1} | {name: 0}))


def test_a_process_gathers_its_own_rows_alone(streams):
    """Every shape, count, length and task is as in the whole batch; rows of other processes are zeros."""
    whole = make_batch(streams, 3, SPEC, 3)
    parts = [make_batch(streams, 3, dataclasses.replace(SPEC, local_rows=rows), 3) for rows in ((0, 2), (1, 3))]
    for number, micro in enumerate(whole.micro):
        for name, array in micro.items():
            mine, theirs = (part.micro[number][name] for part in parts)
            if name in ("task_id_B", "input_length_B", "target_length_B"):
                assert np.array_equal(mine, array) and np.array_equal(theirs, array)
                continue
            assert np.array_equal(mine[[0, 2]], array[[0, 2]]) and not mine[[1, 3]].any()
            assert np.array_equal(mine + theirs, array)
    for part in parts:
        assert np.array_equal(part.target_tokens_N, whole.target_tokens_N) and part.input_padding == whole.input_padding


def test_rows_with_a_sentence_vector_are_counted_from_the_caches(tmp_path):
    """The toy vectors hold their row's number, so that row 0 has none."""
    cache = token_cache(tmp_path, [([5, 1], [7, 1])] * 6, embedding=4)
    stream = Stream(seed=0, caches=(cache,), bank_index=(0,), batch_size=6)
    spec = BatchSpec(input_length=4, target_length=3, micro_batch_size=3, local_rows=(0,))
    assert make_batch([stream], 0, spec, 1).embedded_N == [5]
