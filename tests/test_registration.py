"""User modules, mixtures, and tasks of the table as SeqIO tasks."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from mpt_jax.tasks import registration

from mpt_jax import tasks


@pytest.fixture(scope="module")
def seqio():
    return pytest.importorskip("seqio")


@pytest.fixture
def registry(seqio, table):
    """SeqIO with what a test adds taken out afterwards."""
    before = [dict(registry._REGISTRY) for registry in (seqio.TaskRegistry, seqio.MixtureRegistry)]
    yield seqio
    seqio.TaskRegistry._REGISTRY, seqio.MixtureRegistry._REGISTRY = before


@pytest.fixture
def trees(table, tmp_path):
    rows = [{"a": "oak", "label": 0, "idx": [1, None]}, {"a": "fir, é", "label": "needle", "idx": [2]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tasks.jsonl(
        "trees", files={"train": tmp_path / "a.jsonl"}, template="{a}", labels=("leaf", "needle")
    )


def dataset(task, split="train"):
    return list(tasks.examples(task, task.get_dataset(sequence_length=None, split=split, shuffle=False)))


def test_registered_rows(registry, trees):
    vocabulary = registry.ByteVocabulary()
    task = tasks.register("trees", vocabulary)
    first, second = dataset(task)
    assert second["inputs"].tolist() == [*vocabulary.encode("fir, é"), 1]
    assert second["targets"].tolist() == [*vocabulary.encode("needle"), 1]
    assert second["inputs"].dtype == np.int32
    assert second["inputs_pretokenized"].decode() == "fir, é"
    assert json.loads(first["row_json"]) == {"a": "oak", "label": 0, "idx": [1, None]}
    assert [tasks.row_of_example(example) for example in (first, second)] == list(
        tasks.rows("trees", "train")
    )
    assert task.num_input_examples("train") == 2


def test_registering_again(registry, trees):
    vocabulary = registry.ByteVocabulary()
    task = tasks.register("trees", vocabulary)
    assert tasks.register("trees", registry.ByteVocabulary()) is task
    other = tasks.register("trees", registry.ByteVocabulary(extra_ids=7))
    assert other is not task
    assert registry.TaskRegistry.get("trees") is other
    tasks.add(replace(trees, template="tree {a}"), replace=True)
    assert dataset(tasks.register("trees", vocabulary))[0]["inputs_pretokenized"] == b"tree oak"


def test_embeddings_and_tokens_travel(registry):
    rows = [{"inputs": "a", "targets": "b", "embedding": [0.5, 2.0]}]
    tasks.add(
        tasks.Task("e", "generated", ("train",), generate=lambda s: rows, version="1", embedding_size=2)
    )
    found = dataset(tasks.register("e", registry.ByteVocabulary()))[0]["embedding"]
    assert (found.dtype, found.tolist()) == (np.float32, [0.5, 2.0])
    ids = [{"inputs_tokens": [5, 6, 1], "targets_tokens": [7], "k": 3}]
    tasks.add(tasks.Task("ids", "generated", ("train",), generate=lambda s: ids, version="1", tokens=True))
    found = dataset(tasks.register("ids", registry.ByteVocabulary()))[0]
    assert (found["inputs"].tolist(), found["targets"].tolist()) == ([5, 6, 1], [7])
    assert tasks.row_of_example(found) == {"k": 3}


def test_seqio_can_score_a_task_of_the_table(registry, trees):
    task = tasks.register("trees", registry.ByteVocabulary())
    examples = dataset(task)
    targets = [task.postprocess_fn("", example=example, is_target=True) for example in examples]
    predictions = [task.postprocess_fn(text, example=None, is_target=False) for text in ("leaf", "leaf")]
    assert task.metric_fns[0](targets, predictions) == {"accuracy": 50.0, "invalid": 0.0}


@pytest.mark.parametrize("row", ['{"a": "x", "label": 9}', '{"label": 1}', "{", '{"a": "", "label": 1}'])
def test_bad_rows_keep_their_own_error(registry, trees, tmp_path, row):
    (tmp_path / "a.jsonl").write_text('{"a": "x", "label": 1}\n' + row)
    task = tasks.register("trees", registry.ByteVocabulary())
    with pytest.raises(tasks.TaskError, match=r"^\S+a\.jsonl:2: "):
        dataset(task)


def test_row_that_is_not_json(registry):
    rows = [{"inputs": "a", "targets": "b", "n": np.int64(3)}]
    tasks.add(tasks.Task("n", "generated", ("train",), generate=lambda s: rows, version="1"))
    with pytest.raises(tasks.TaskError, match="task 'n': a row's fields must be JSON values: .*int64"):
        dataset(tasks.register("n", registry.ByteVocabulary()))


def test_name_taken_in_seqio(registry, trees):
    registry.TaskRegistry.add("trees", source=registry.TextLineDataSource({"train": "x"}), output_features={})
    with pytest.raises(tasks.TaskError, match="'trees' is in the table and also added to SeqIO"):
        tasks.register("trees", registry.ByteVocabulary())


def test_ordinary_tasks_come_as_they_are(registry):
    task = registry.TaskRegistry.add(
        "own", source=registry.TextLineDataSource({"train": "x"}), output_features={}
    )
    assert tasks.register("own", registry.ByteVocabulary()) is task
    with pytest.raises(tasks.TaskError, match="unknown task 'ow': the nearest names are own"):
        tasks.register("ow", registry.ByteVocabulary())


def test_expand(registry, trees):
    feature = registry.Feature(registry.ByteVocabulary())
    for name in ("one", "two"):
        registry.TaskRegistry.add(
            name,
            source=registry.TextLineDataSource({"train": "x"}),
            output_features={"inputs": feature, "targets": feature},
        )
    registry.MixtureRegistry.add("both", ["one", "two"], default_rate=1.0)
    assert tasks.expand(["two", "both", "trees"]) == ("two", "one", "trees")
    assert tasks.expand("both") == ("one", "two")
    assert tasks.expand(["elsewhere", "one"], cached={"elsewhere"}) == ("elsewhere", "one")
    tasks.register("trees", registry.ByteVocabulary())  # SeqIO wants a mixture's tasks registered first
    registry.MixtureRegistry.add("wood", ["trees", "both"], default_rate=1.0)
    assert tasks.expand(["wood"]) == ("one", "trees", "two")
    with pytest.raises(tasks.TaskError, match="unknown task 'bot': the nearest names are both"):
        tasks.expand(["one", "bot"])


def test_a_name_that_seqio_and_the_table_share_is_refused(registry, trees):
    feature = registry.Feature(registry.ByteVocabulary())
    features = {"inputs": feature, "targets": feature}
    for name, ours in (("trees", "task"), ("superglue", "mixture of superglue_multirc")):
        registry.TaskRegistry.add(name, source=registry.TextLineDataSource({"train": "x"}), output_features=features)
        with pytest.raises(tasks.TaskError, match=f"'{name}' is a SeqIO task and also a {ours}.*another name"):
            tasks.expand([name])
    registry.MixtureRegistry.add("glue", ["superglue"], default_rate=1.0)
    with pytest.raises(tasks.TaskError, match="'glue' is a SeqIO mixture and also a mixture of mnli"):
        tasks.expand(["glue"])
    tasks.check_one_meaning("mnli")
    tasks.register("mnli", registry.ByteVocabulary())
    tasks.check_one_meaning("mnli")


def test_seqio_scores_a_task_of_the_table_as_its_vocabulary_writes_the_labels(registry, table):
    class LowerCase(registry.ByteVocabulary):
        def encode(self, s):
            return super().encode(s.lower())

    tasks.add(tasks.Task("news", "generated", ("train",), labels=("World", "sports"), generate=lambda split: [], version="1"))
    scores = tasks.register("news", LowerCase()).metric_fns[0]
    assert scores([{"targets": "World"}], ["world"]) == {"accuracy": 100.0, "invalid": 0.0}


def test_a_file_that_seqio_cannot_read_is_one_line(registry, tmp_path):
    feature = registry.Feature(registry.ByteVocabulary())

    def both(lines):
        return lines.map(lambda line: {"inputs": line, "targets": line})

    task = registry.TaskRegistry.add(
        "absent", source=registry.TextLineDataSource({"train": str(tmp_path / "x.txt")}),
        preprocessors=[both, registry.preprocessors.tokenize], output_features={"inputs": feature, "targets": feature},
    )  # fmt: skip
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(tasks.TaskError, match="SeqIO task 'absent': its rows cannot be read"):
        dataset(task)


def test_expand_without_seqio(trees, monkeypatch):
    monkeypatch.delitem(sys.modules, "seqio", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # importing it now fails
    assert tasks.expand(["trees"]) == ("trees",)
    with pytest.raises(tasks.TaskError, match="unknown task 'tree': the nearest names are trees"):
        tasks.expand(["tree"])
    assert "seqio" not in sys.modules


def test_import_module_by_path_runs_once(table, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import tasks\n"
        "tasks.jsonl('mine', files={'train': 'x.jsonl'}, template='{a}', target='{b}')\n"
        "tasks.TABLE['mine runs'] = tasks.TABLE.get('mine runs', 0) + 1\n"
    )
    tasks.import_module(None)
    tasks.import_module(str(tmp_path / "mine.py"))
    tasks.import_module(str(tmp_path / "mine.py"))
    assert table["mine"].target == "{b}"
    assert table["mine runs"] == 1


def test_import_module_by_name(table, tmp_path, monkeypatch):
    (tmp_path / "mine_by_name.py").write_text(
        "import tasks\ntasks.jsonl('named', files={'train': 'x.jsonl'}, template='{a}', target='{b}')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    tasks.import_module("mine_by_name")
    assert "named" in table
    del sys.modules["mine_by_name"]


def test_import_module_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(tasks.TaskError, match="MIXTURE_OR_TASK_MODULE: there is no module 'no_such.thing'"):
        tasks.import_module("no_such.thing")
    with pytest.raises(tasks.TaskError, match="MIXTURE_OR_TASK_MODULE: there is no file .*no.py"):
        tasks.import_module(str(tmp_path / "no.py"))
    for name in (".mine", "a..b", "mine."):
        with pytest.raises(tasks.TaskError, match=f"MIXTURE_OR_TASK_MODULE = '{name}': give a dotted name"):
            tasks.import_module(name)


def test_errors_inside_a_module_come_out(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    for _ in range(2):  # the second time as well: a module that failed is not kept
        with pytest.raises(ModuleNotFoundError, match="no_such_package"):
            tasks.import_module(str(tmp_path / "broken.py"))
    assert not [name for name in sys.modules if "broken" in name and name.startswith("mpt_task")]


def test_names_of_the_package_are_functions():
    assert callable(tasks.rows) and callable(tasks.describe)
    assert registration.rows is tasks.rows
