"""Queries of many tasks and runs (infer/queries.py, sources.py, live_bank.py): each gets what its own run alone answers."""

import numpy as np
import pytest
import tiny_bank
from tiny_model import tiny
from tiny_run import STEP

import mpt_jax
from mpt_jax import Query, tasks
from mpt_jax.errors import UserError
from mpt_jax.infer import queries
from mpt_jax.infer.live_bank import FIRST_ROWS, LiveBank
from mpt_jax.infer.sources import Sources, split
from mpt_jax.methods.prompt import METHOD
from mpt_jax.model.families.family import Network

TEXTS = ("a film", "two words", "no", "something that is longer than the others, and cut")
ASKED = (("a", "sst2", None), ("a", "sst2", 2), ("a", "mrpc", None), ("b", "mrpc", 1), ("b", "rte", None), ("c", "cola", None))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three runs of one backbone, the last with longer prompts and shorter inputs."""
    folder = tmp_path_factory.mktemp("runs")
    described = tiny_bank.write_backbone(folder / "backbone")
    kinds = {"a": (("sst2", "mrpc", "sst2"), 4, 64), "b": (("mrpc", "rte"), 4, 64), "c": (("cola",), 6, 24)}
    return [
        tiny_bank.write_prompts(folder / name, described, names, length=length, seed=seed, inputs=inputs)
        for seed, (name, (names, length, inputs)) in enumerate(kinds.items())
    ]


@pytest.fixture(scope="module")
def alone(folders):
    """Each run by itself."""
    return {folder[-1]: mpt_jax.load(folder) for folder in folders}


@pytest.mark.slow
def test_mixed_tasks_in_one_call_are_answered_as_each_run_alone_does(folders, alone):
    together = mpt_jax.load(folders)
    assert together.tasks == ("sst2", "a/mrpc", "b/mrpc", "rte", "cola")
    asked, expected = [], []
    for n, text in enumerate(TEXTS * 3):
        for run, task, seed in ASKED:
            name = f"{run}/{task}" if task == "mrpc" else task
            asked.append(Query(text, name, seed, **({}, {"target": "yes"}, {"labels": ("no", "yes")})[n % 3]))
            expected.append((n % 3, alone[run], text, task, seed))
    for answer, (kind, one, text, task, seed) in zip(together.answer(asked), expected, strict=True):
        if kind == 0:
            assert (answer.text, answer.score, answer.scores) == (one.predict([text], task, seed)[0], None, None)
        elif kind == 1:
            assert answer.score == pytest.approx(one.score([text], ["yes"], task, seed)[0], abs=1e-4) and answer.text is None
        else:
            assert list(answer.scores) == ["no", "yes"]
            np.testing.assert_allclose(list(answer.scores.values()), one.score_labels([text], ["no", "yes"], task, seed)[0], atol=1e-4)
    assert together.answer([]) == []


def test_queries_that_cannot_be_answered(folders, tmp_path):
    together = mpt_jax.load(folders)
    for query, message in (
        (Query("x", "mrpc"), "task 'mrpc' is in 2 sources: name it as 'a/mrpc' or 'b/mrpc'"),
        (Query("x", "c/mrpc"), "this run holds no prompt of task 'c/mrpc'"),
        (Query("x"), "this run holds several tasks: name one of sst2, a/mrpc"),
        (Query("x", "sst2", 7), "seed = 7: the run holds seeds 1, 2 of task 'sst2'"),
        (Query(" ", "rte"), "zero-length input: text 1 of 2"),
        (Query(5, "rte"), "text 1 of 2"),
        (Query("x", "rte", target="y" * 16), "target 1 of 2 has 17 tokens, the limit is 16: shorten it, or raise"),
        (Query("x", "rte", labels=("same", "same")), "are the same to vocabulary"),
        (Query("x", "rte", max_tokens=-1), "max_tokens = -1"),
    ):
        with pytest.raises(UserError) as error:
            together.answer([Query("fine", "rte"), query])
        assert message in str(error.value)
    other = tiny_bank.write_prompts(tmp_path / "z", tiny_bank.write_backbone(tmp_path / "other", tiny(d_ff=24)), ("x",))
    for runs, message in (([folders[0], other], "give runs of one backbone"), ([folders[0]] * 2, "is given twice"), ([], "no run folder")):
        with pytest.raises(UserError, match=message):
            mpt_jax.load(runs)


def test_an_answer_does_not_depend_on_the_queries_before_it(folders, table):
    tasks.add(tasks.Task("rte", "generated", ("test",), "{a}", labels=("no", "yes"), generate=lambda _: [], version="1"), replace=True)
    sources = mpt_jax.load(folders).sources
    plain, scored = Query("x", "rte"), Query("x", "rte", labels=["no", "yes"])
    (alone,), (_, after) = queries.asked([plain], sources), queries.asked([scored, plain], sources)
    assert after.spelled == alone.spelled == {"no": "no", "yes": "yes"}


@pytest.mark.parametrize("labels", [(), [], "yes"])
def test_labels_are_a_list_of_texts(folders, labels):
    with pytest.raises(UserError, match="labels = .* of text 0 of 1: they are a list of one text or more"):
        mpt_jax.load(folders).answer([Query("x", "rte", labels=labels)])


def test_a_run_is_called_by_its_folder_wherever_one_stands(folders, monkeypatch):
    monkeypatch.chdir(folders[0])
    for first in (".", "../a", "checkpoints/.."):
        assert mpt_jax.load([first, folders[1]]).tasks == ("sst2", "a/mrpc", "b/mrpc", "rte")


def test_a_name_that_would_stand_for_two_tasks(folders):
    """RUN/TASK asks for a run's task, so that no other task may be called that."""
    first = next(iter(mpt_jax.load(folders[:1]).sources))
    other = first._replace(name="z", run={"tasks": ["a/sst2"], "runs": []})
    for given in ([first, other], [other, first], [first._replace(name="a", run={"tasks": ["sst2", "a/sst2"], "runs": []})]):
        sources = Sources()
        with pytest.raises(UserError, match="the name 'a/sst2' would stand for two tasks"):
            for source in given:
                sources.add(source)


def test_the_step_is_the_first_runs(folders):
    assert mpt_jax.load(folders).step == mpt_jax.load(folders[0]).step == STEP


def test_a_task_is_taken_out_of_a_source(folders):
    source = next(iter(mpt_jax.load(folders).sources))
    kept, gone = split(source, "sst2")
    assert (kept.tasks, gone.tasks) == (("mrpc",), ("sst2",))
    assert sorted(kept.rows + gone.rows) == sorted(source.rows) and gone.bank_row("sst2", 2) == source.bank_row("sst2", 2)


def test_a_bank_doubles_keeps_its_rows_and_gives_freed_ones_again(alone):
    model = alone["a"].model
    bank = LiveBank(Network(model.network.config, adaptation=METHOD.adaptation), model.params, model.vocabulary, 4, 16)
    first = bank.add(tiny_bank.prompts(FIRST_ROWS, 4, 16))
    assert (bank.rows, bank.taken) == (FIRST_ROWS, FIRST_ROWS)
    more = bank.add(tiny_bank.prompts(3, 4, 16, 1))
    assert (bank.rows, bank.taken) == (2 * FIRST_ROWS, FIRST_ROWS + 3) and not set(first) & set(more)
    held = np.asarray(next(iter(bank.model.own_of(np.array([*first, *more])).values())))
    np.testing.assert_array_equal(held, np.concatenate([tiny_bank.prompts(FIRST_ROWS, 4, 16), tiny_bank.prompts(3, 4, 16, 1)]))
    bank.free(more[:2])
    assert set(bank.add(tiny_bank.prompts(2, 4, 16, 2))) == set(more[:2]) and bank.rows == 2 * FIRST_ROWS
