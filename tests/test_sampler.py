"""Sampling: a pure function of (seed, step), with MPT's task sampling and whole epochs of every task."""

import threading
import time

import numpy as np
import pytest
from tiny_data import sized_cache, token_cache

from mpt_jax.data.sampler import Stream, draw, few_shot_rows
from mpt_jax.errors import UserError

SIZES = (50, 20, 5, 300)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    return tuple(sized_cache(folder, size, f"task{size}") for size in SIZES)


def stream(caches, **settings):
    settings = {"seed": 0, "batch_size": 16, "mixing": "stochastic"} | settings
    return Stream(caches=caches, bank_index=tuple(range(len(caches))), **settings)


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mixing", ["proportional", "stochastic", "equal"])
def test_draw_is_a_pure_function_of_seed_and_step(caches, mixing):
    there = [draw(stream(caches, mixing=mixing), step) for step in (700, 3, 255, 256, 512)]
    walker = stream(caches, mixing=mixing)
    walked = [draw(walker, step) for step in range(701)]
    for step, drawn in zip((700, 3, 255, 256, 512), there, strict=True):
        assert same(walked[step], drawn)
        assert same(draw(walker, step), drawn), "going back must not change a batch"
    assert not same(draw(stream(caches, mixing=mixing, seed=1), 3), walked[3])
    assert not same(walked[3], walked[4])


@pytest.mark.parametrize("mixing", ["proportional", "stochastic", "equal"])
def test_every_epoch_of_a_task_has_each_row_once(caches, mixing):
    run = stream(caches, mixing=mixing)
    walked = [draw(run, step) for step in range(120)]
    task = np.concatenate([cache_B for cache_B, _ in walked])
    row = np.concatenate([row_B for _, row_B in walked])
    assert all(len(cache_B) == 16 for cache_B, _ in walked)
    for place, size in enumerate(SIZES):
        seen = row[task == place]
        epochs = [seen[start : start + size] for start in range(0, len(seen), size)]
        assert len(epochs) > 1, "the test must reach a second epoch"
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch)
        assert set(epochs[0]) == set(range(size))
        assert not np.array_equal(epochs[0][: len(epochs[1])], epochs[1]), "epochs must differ in order"


def test_stochastic_sampling_follows_mpt(caches):
    """K tasks with replacement, floor(B/K) rows each, the remainder to one of them."""
    run = stream(caches, batch_size=15, cap=5)  # cap 5: all tasks alike
    tasks_seen = set()
    for step in range(400):
        counts = np.bincount(draw(run, step)[0], minlength=4)
        assert counts.sum() == 15
        fits = []
        for number in (2, 3, 4):  # K
            each, rest = divmod(15, number)
            for lucky in range(4):
                times = counts - rest * (np.arange(4) == lucky)  # rows besides the remainder
                fits.append(
                    (times >= 0).all() and (times % each == 0).all() and (rest == 0 or times[lucky] >= each)
                )
        assert any(fits), counts
        tasks_seen.add(int((counts > 0).sum()))
    assert tasks_seen == {1, 2, 3, 4}


def test_stochastic_sampling_of_a_batch_smaller_than_the_draw(caches):
    run = stream(caches, batch_size=2)
    counts = [np.bincount(draw(run, step)[0], minlength=4) for step in range(200)]
    assert all(count.sum() == 2 for count in counts)
    assert {tuple(sorted(count)) for count in counts} == {(0, 0, 0, 2), (0, 0, 1, 1)}


@pytest.mark.parametrize(
    "mixing,cap,share",
    [
        ("proportional", 2**18, (50, 20, 5, 300)),
        ("stochastic", 100, (50, 20, 5, 100)),
        ("equal", 2**18, (1, 1, 1, 1)),
    ],
)
def test_tasks_come_at_their_shares(caches, mixing, cap, share):
    run = stream(caches, mixing=mixing, cap=cap, batch_size=64)
    counts = sum(np.bincount(draw(run, step)[0], minlength=4) for step in range(1500))
    expected = np.array(share) / sum(share)
    assert np.allclose(counts / counts.sum(), expected, atol=0.025)
    assert np.allclose(run.probabilities, expected)


def test_a_stream_does_not_depend_on_other_streams(caches):
    alone = stream(caches[:2], seed=5)
    same_run = stream(caches[:2], seed=5, subset=(None, None))
    assert same(draw(alone, 9), draw(same_run, 9))


def test_subset_rows_only_and_each_epoch_whole(caches):
    rows = np.array([4, 8, 15, 16, 23, 42])
    run = stream(caches[:1], subset=(rows,), batch_size=4)
    drawn = np.concatenate([draw(run, step)[1] for step in range(6)])
    for start in range(0, 24, 6):
        assert sorted(drawn[start : start + 6]) == rows.tolist()


def test_step_100_000_is_cheap(caches):
    start = time.perf_counter()
    draw(stream(caches, batch_size=32), 100_000)
    assert time.perf_counter() - start < 2.0, "a resumed run must not wait for its sampler"


def test_many_threads_draw_the_same(caches):
    run, found = stream(caches), {}

    def read(steps):
        for step in steps:
            found[step] = draw(run, step)

    threads = [threading.Thread(target=read, args=(range(part, 1200, 6),)) for part in (5, 4, 3, 2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    quiet = stream(caches)
    assert len(found) == 1200 and all(same(found[step], draw(quiet, step)) for step in range(1200))


def test_few_shot_in_total_and_per_class(tmp_path):
    targets = [[3, 1]] * 50 + [[4, 1]] * 30 + [[5, 1]] * 6
    cache = token_cache(tmp_path, [([9, 1], target) for target in targets])

    def classes(rows):
        return np.bincount([cache.targets(row)[0] - 3 for row in rows], minlength=3).tolist()

    assert sorted(classes(few_shot_rows(cache, 16, 0))) == [5, 5, 6]
    assert classes(few_shot_rows(cache, 32, 0)) == [13, 13, 6]
    assert classes(few_shot_rows(cache, 6, 0, per_class=True)) == [6, 6, 6]
    assert few_shot_rows(cache, 86, 0).tolist() == list(range(86))
    assert np.array_equal(few_shot_rows(cache, 16, 3), few_shot_rows(cache, 16, 3))
    draws = {tuple(few_shot_rows(cache, 4, seed)) for seed in range(10)}
    assert len(draws) == 10 and all(sum(classes(rows)) == 4 and max(classes(rows)) == 2 for rows in draws)
    with pytest.raises(UserError, match="k = 7 per class.*class of 6"):
        few_shot_rows(cache, 7, 0, per_class=True)
    with pytest.raises(UserError, match="k = 87.*86 rows"):
        few_shot_rows(cache, 87, 0)


def test_wrong_settings_are_named(caches):
    for settings, text in (
        ({"mixing": "sorted"}, "mixing = 'sorted'"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"cap": 0}, "cap = 0"),
        ({"subset": (None, None, np.array([9]), None)}, "task5"),
        ({"subset": (None,)}, "subset"),
    ):
        with pytest.raises(UserError, match=text):
            stream(caches, **settings)
    with pytest.raises(UserError, match="at least one task"):
        stream(())
    with pytest.raises(UserError, match="step = -1"):
        draw(stream(caches), -1)
