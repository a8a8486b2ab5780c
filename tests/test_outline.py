"""What a token cache keeps of its task is enough to score it and to make its inputs."""

import json

import pytest
from mpt_jax.tasks.rendering import inputs_text

from mpt_jax import tasks


def test_a_task_comes_back_without_its_rows(table):
    for settings in ({"labels": ("no", "yes"), "score": ("f1", "accuracy")}, {"target": "{t}", "references": "r", "score": "squad"}):
        task = tasks.jsonl("mine", files={"train": "x.jsonl"}, template="q: {q}", replace=True, **settings)
        kept = json.loads(json.dumps(tasks.outline("mine")))
        back = tasks.stand_in("mine", "train", kept)
        assert (back.labels, back.scores, back.references, back.template) == (task.labels, task.scores, task.references, task.template)
        assert inputs_text(back, {"q": "a"}, "here") == "q: a"
        tasks.add(back, replace=True)
        for ask in (lambda: tasks.rows("mine", "train"), lambda: tasks.ingredients("mine", "train")):
            with pytest.raises(tasks.TaskError, match="known from its token cache alone; its rows need MIXTURE_OR_TASK_MODULE"):
                ask()


def test_a_task_of_functions_is_scored_by_its_text():
    back = tasks.stand_in("other", "test", tasks.outline("other"))
    assert back.scores == ("exact_match",) and back.splits == ("test",) and inputs_text(back, {"inputs": "a"}, "here") == "a"


@pytest.mark.parametrize("kept", [None, [], {"labels": 5}, {"score": 5}, {"labels": ["a"]}, {"score": "none"}, {"template": 5}])
def test_outlines_that_are_not_one(kept):
    try:
        tasks.stand_in("odd", "train", kept)
    except tasks.TaskError:
        return
    assert not kept
