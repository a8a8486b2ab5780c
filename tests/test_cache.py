"""The token cache (cache.py, cache_writer.py): what SeqIO gives is what is read, nothing half-written or damaged is ever used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_data import byte_vocabulary, piece_file, token_cache

from mpt_jax import tasks
from mpt_jax.data import cache as cache_module
from mpt_jax.data import cache_writer, checked_folder
from mpt_jax.data.cache import cached_names, open_cache, read_cache, write_cache
from mpt_jax.data.vocabulary import load_vocabulary, seqio_vocabulary
from mpt_jax.errors import UserError
from mpt_jax.model.backbone import SHIPPED

ROOT = Path(__file__).resolve().parents[1]
RECORDS = [
    {"text": f"the dog number {row}", "label": row % 2, "idx": row, "tags": ["a", "b"]} for row in range(6)
]


@pytest.fixture
def vocabulary():
    return load_vocabulary(piece_file())


@pytest.fixture
def file_task(tmp_path):
    """A task of the table over a JSONL file; gone from the table afterwards."""
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    name = f"toy_{tmp_path.name}".replace("-", "_")
    tasks.jsonl(name, files={"train": str(source)}, template="toy text: {text}", labels=("no", "yes"))
    yield name, source
    del tasks.TABLE[name]


@pytest.fixture
def seqio_task(vocabulary):
    """An ordinary SeqIO task: a function source, string and number features of its own."""
    seqio = pytest.importorskip("seqio")
    import tensorflow as tf

    rows = {
        "inputs": [f"the dog {row} <extra_id_0>" for row in range(5)],
        "targets": ["yes", "no", "yes", "", "no"],
        "score": np.array([0.5, 1, 2, 3, 4], np.float32),
        "names": [[f"n{row}", "é"] for row in range(5)],
    }
    feature = seqio.Feature(seqio_vocabulary(vocabulary), add_eos=True)
    task = seqio.TaskRegistry.add(
        "ordinary_toy",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), splits=["train"]
        ),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"inputs": feature, "targets": feature},
        metric_fns=[],
    )
    yield task
    seqio.TaskRegistry.remove("ordinary_toy")


def test_cache_of_a_table_task_equals_seqio(file_task, vocabulary, tmp_path):
    name, _ = file_task
    done = []
    cache = open_cache(name, "train", vocabulary, tmp_path / "cache", progress=done.append)
    task = tasks.register(name, seqio_vocabulary(vocabulary))
    examples = list(task.get_dataset(None, "train", shuffle=False).as_numpy_iterator())
    assert cache.rows == len(cache) == len(examples) == 6 and done == [6]
    for row, example in enumerate(examples):
        assert cache.inputs(row).tolist() == example["inputs"].tolist()
        assert cache.targets(row).tolist() == example["targets"].tolist()
        assert cache.inputs(row).dtype == np.int32 and cache.inputs(row)[-1] == 1
        assert cache.input_lengths[row] == len(example["inputs"])
        assert cache.target_lengths[row] == len(example["targets"])
        extra = cache.extra(row)
        assert extra["label"] == row % 2 and extra["idx"] == row and extra["tags"] == ["a", "b"]
        assert extra["targets"] == ("no", "yes")[row % 2] and extra["inputs"].endswith(
            f"the dog number {row}"
        )
        assert vocabulary.decode(cache.targets(row)) == extra["targets"]
    assert cache.meta["input_tokens"] == cache.input_lengths.sum()
    assert cache.meta["longest_target"] == cache.target_lengths.max()
    assert cache.embedding is None and (cache.name, cache.split) == (name, "train")


def test_cache_of_an_ordinary_seqio_task(seqio_task, vocabulary, tmp_path):
    cache = open_cache("ordinary_toy", "train", vocabulary, tmp_path)
    for row, example in enumerate(seqio_task.get_dataset(None, "train", shuffle=False).as_numpy_iterator()):
        assert cache.inputs(row).tolist() == example["inputs"].tolist()
        assert cache.targets(row).tolist() == example["targets"].tolist()
    extra = cache.extra(4)
    assert extra["score"] == 4.0 and extra["names"] == ["n4", "é"] and extra["targets"] == "no"
    assert cache.targets(3).tolist() == [1], "an empty target is its end of sequence"
    assert cached_names(tmp_path) == {"ordinary_toy"}
    with pytest.raises(ValueError, match="no split 'test'"):
        open_cache("ordinary_toy", "test", vocabulary, tmp_path)


@pytest.mark.parametrize("extra", ["plain", "ragged"])
def test_features_of_every_shape_are_kept(extra, vocabulary, tmp_path):
    seqio = pytest.importorskip("seqio")
    import tensorflow as tf

    def example(row):
        fields = {
            "id": row, "share": float(row), "name": f"n{row}", "yes": row % 2 == 0, "pair": [row, row + 1],
            "spans": [[row]] * (row + 1), "words": ["a"] * row, "inner": {"deep": ["b"] * row, "one": row},
        }  # fmt: skip
        return {"inputs": [3] * (row + 1), "targets": [4] * row} | fields

    def dataset(split, shuffle_files, seed=None):
        shapes = {
            "inputs": tf.TensorSpec([None], tf.int32), "targets": tf.TensorSpec([None], tf.int32),
            "id": tf.TensorSpec([], tf.int64), "share": tf.TensorSpec([], tf.float32),
            "name": tf.TensorSpec([], tf.string), "yes": tf.TensorSpec([], tf.bool),
            "pair": tf.TensorSpec([2], tf.int32), "spans": tf.TensorSpec([None, 1], tf.int32),
            "words": tf.TensorSpec([None], tf.string),
            "inner": {"deep": tf.TensorSpec([None], tf.string), "one": tf.TensorSpec([], tf.int32)},
        }  # fmt: skip
        rows = tf.data.Dataset.from_generator(lambda: map(example, range(300)), output_signature=shapes)
        if extra == "plain":
            return rows
        return rows.map(lambda row: row | {"ragged": tf.ragged.stack([row["inputs"], row["targets"]])})

    feature = seqio.Feature(seqio_vocabulary(vocabulary), add_eos=False)
    features = {"inputs": feature, "targets": feature}
    source = seqio.FunctionDataSource(dataset, splits=["train"])
    seqio.TaskRegistry.add(f"shapes_{extra}", source, features, preprocessors=[], metric_fns=[])
    cache = open_cache(f"shapes_{extra}", "train", vocabulary, tmp_path)
    seqio.TaskRegistry.remove(f"shapes_{extra}")
    assert cache.rows == 300
    for row in (0, 1, 2, 255, 256, 299):
        expected = example(row)
        if extra == "ragged":
            expected["ragged"] = [expected["inputs"], expected["targets"]]
        assert cache.inputs(row).tolist() == expected.pop("inputs")
        assert cache.targets(row).tolist() == expected.pop("targets")
        assert cache.extra(row) == expected


def test_random_preprocessors_are_seeded(vocabulary, tmp_path):
    seqio = pytest.importorskip("seqio")
    import tensorflow as tf

    (tmp_path / "lines.txt").write_text("the dog\n" * 20)

    @seqio.map_over_dataset(num_seeds=1)
    def number(line, seed):
        drawn = tf.random.stateless_uniform([], seed, 0, 1000, tf.int32)
        return {"inputs": tf.strings.join([line, " ", tf.strings.as_string(drawn)]), "targets": line}

    feature = seqio.Feature(seqio_vocabulary(vocabulary), add_eos=True)
    seqio.TaskRegistry.add(
        "random_numbers",
        seqio.TextLineDataSource({"train": str(tmp_path / "lines.txt")}),
        {"inputs": feature, "targets": feature},
        preprocessors=[number, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        metric_fns=[],
    )
    caches = [write_cache("random_numbers", "train", vocabulary, tmp_path / "cache") for _ in range(2)]
    seqio.TaskRegistry.remove("random_numbers")
    assert len({caches[0].extra(row)["inputs"] for row in range(20)}) > 10
    assert caches[0].fingerprint == caches[1].fingerprint


def test_a_seqio_task_in_another_vocabulary_is_refused(seqio_task, vocabulary, tmp_path):
    for other in (byte_vocabulary(), load_vocabulary(piece_file(), 50)):
        with pytest.raises(UserError, match="another vocabulary.*register the task"):
            open_cache("ordinary_toy", "train", other, tmp_path)
    copied = tmp_path / "copied.model"
    copied.write_bytes(Path(piece_file()).read_bytes())
    assert open_cache("ordinary_toy", "train", load_vocabulary(copied), tmp_path).rows == 5


def test_a_seqio_task_without_targets_is_refused(seqio_task, vocabulary, tmp_path):
    seqio = sys.modules["seqio"]
    features = {"inputs": seqio_task.output_features["inputs"]}
    seqio.TaskRegistry.add(
        "inputs_only", seqio_task.source, features, preprocessors=seqio_task.preprocessors, metric_fns=[]
    )
    with pytest.raises(UserError, match="'inputs_only' has features inputs;"):
        open_cache("inputs_only", "train", vocabulary, tmp_path)
    seqio.TaskRegistry.remove("inputs_only")


def test_a_second_opening_reads_what_is_there(file_task, vocabulary, tmp_path, monkeypatch):
    name, _ = file_task
    first = open_cache(name, "train", vocabulary, tmp_path / "cache")
    monkeypatch.setattr(cache_writer, "write", None)
    second = open_cache(name, "train", vocabulary, tmp_path / "cache")
    assert second.folder == first.folder and second.fingerprint == first.fingerprint


def test_changed_source_template_or_vocabulary_is_written_anew(file_task, vocabulary, tmp_path):
    name, source = file_task
    first = open_cache(name, "train", vocabulary, tmp_path / "cache")
    source.write_text(json.dumps(RECORDS[0] | {"text": "the fox"}) + "\n")
    changed = open_cache(name, "train", vocabulary, tmp_path / "cache")
    assert changed.rows == 1 and changed.fingerprint != first.fingerprint
    assert vocabulary.decode(changed.inputs(0)).endswith("the fox")
    other = open_cache(name, "train", load_vocabulary(piece_file(), 50), tmp_path / "cache")
    assert other.folder not in (first.folder, changed.folder)
    assert open_cache(name, "train", vocabulary, tmp_path / "cache").folder == changed.folder


def test_without_build_a_missing_cache_is_an_error(file_task, vocabulary, tmp_path):
    with pytest.raises(UserError, match="no token cache.*mpt-jax cache"):
        open_cache(file_task[0], "train", vocabulary, tmp_path / "cache", build=False)


def test_a_missing_source_is_an_error_and_its_cache_is_used_only_when_asked(file_task, vocabulary, tmp_path, caplog):
    name, source = file_task
    first = open_cache(name, "train", vocabulary, tmp_path / "cache")
    source.unlink()
    with pytest.raises(tasks.TaskError, match=r"rows.jsonl: there is no such file.*it was cached before: --trust_caches"):
        open_cache(name, "train", vocabulary, tmp_path / "cache")
    with caplog.at_level("WARNING"):
        again = open_cache(name, "train", vocabulary, tmp_path / "cache", trust=True)
    assert again.folder == first.folder and f"{first.folder} is used as it was written last" in caplog.text
    with pytest.raises(tasks.TaskError, match="no such file: correct `files` of the task or the current folder$"):
        open_cache(name, "train", load_vocabulary(piece_file(), 50), tmp_path / "cache")


FILES = ("inputs.npy", "input_offsets.npy", "targets.npy", "target_offsets.npy", "extra.bin", "meta.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damage_is_named(file, damage, tmp_path):
    folder = token_cache(tmp_path, [([5, 1], [6, 1])] * 40).folder
    path = folder / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = content[:-3] + bytes([content[-3] ^ 0x81]) + content[-2:]
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else flipped)
    with pytest.raises(UserError, match=rf"{file}.*delete.*overwrite"):
        read_cache(folder)


def test_overwrite_mends_a_damaged_cache(file_task, vocabulary, tmp_path):
    first = open_cache(file_task[0], "train", vocabulary, tmp_path / "cache")
    (first.folder / "targets.npy").write_bytes(b"")
    with pytest.raises(UserError, match="targets.npy"):
        open_cache(file_task[0], "train", vocabulary, tmp_path / "cache")
    mended = open_cache(file_task[0], "train", vocabulary, tmp_path / "cache", overwrite=True)
    assert mended.folder == first.folder and mended.fingerprint == first.fingerprint
    assert sorted(path.name for path in first.folder.parent.iterdir()) == [first.folder.name]


def test_a_failed_writing_leaves_the_old_cache(tmp_path):
    good = token_cache(tmp_path, [([5, 1], [6, 1])])

    def examples():
        yield {"inputs": np.array([9, 1]), "targets": np.array([1])}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_writer.write(good.meta["key"], examples(), byte_vocabulary(), good.folder)
    assert read_cache(good.folder).inputs(0).tolist() == [5, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_killed_writing_leaves_the_old_cache(tmp_path):
    good = token_cache(tmp_path, [([5, 1], [6, 1])])
    code = (
        "import json, os, signal, sys; from pathlib import Path; import numpy as np\n"
        "from mpt_jax.data import cache_writer; from mpt_jax.data.vocabulary import load_vocabulary\n"
        "def rows():\n"
        "    yield {'inputs': np.array([9, 1]), 'targets': np.array([1])}\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache_writer.write(json.loads(sys.argv[1]), rows(), load_vocabulary('bytes'), Path(sys.argv[2]))"
    )
    key = json.dumps(good.meta["key"])
    done = subprocess.run([sys.executable, "-c", code, key, str(good.folder)], env=environment(), check=False)
    assert done.returncode == -9
    assert read_cache(good.folder).inputs(0).tolist() == [5, 1]


def test_an_equal_cache_that_is_there_stays(tmp_path):
    good = token_cache(tmp_path, [([5, 1], [6, 1])])
    before = good.folder.stat().st_ino
    again = token_cache(tmp_path, [([5, 1], [6, 1])])
    assert again.fingerprint == good.fingerprint and again.folder.stat().st_ino == before
    other = token_cache(tmp_path, [([7, 1], [6, 1])])
    assert other.fingerprint != good.fingerprint and other.folder.stat().st_ino != before
    assert good.inputs(0).tolist() == [5, 1], "what is open stays readable"
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


RACE = """
import sys
from pathlib import Path
from tiny_data import token_cache
folder, turns = Path(sys.argv[1]), int(sys.argv[2])
while not (folder / "go").exists():
    pass
for turn in range(turns):
    cache = token_cache(folder / str(turn), [([5 + row, 1], [6, 1]) for row in range(50)])
    assert cache.rows == 50
"""


@pytest.mark.parametrize("processes, turns", [(3, 30), pytest.param(4, 60, marks=pytest.mark.long)])
def test_processes_that_start_together_share_one_cache(tmp_path, processes, turns):
    argv = [sys.executable, "-c", RACE, str(tmp_path), str(turns)]
    running = [subprocess.Popen(argv, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(processes)]
    (tmp_path / "go").touch()
    assert [(process.wait(), process.stderr.read()) for process in running] == [(0, "")] * processes
    assert [path.name for turn in tmp_path.glob("*/") for path in turn.iterdir()] == ["toy"] * turns


def test_what_a_killed_process_left_is_cleared_by_the_next_writer_and_a_live_one_goes_on(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from mpt_jax.data.checked_folder import whole_or_not_at_all\n"
        "with whole_or_not_at_all(Path(sys.argv[1])) as temporary:\n"
        "    (temporary / 'half').write_text('x'); print('writing', flush=True); time.sleep(float(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code]
    killed, live = (
        subprocess.Popen([*command, str(tmp_path / name), "60"], env=environment(), stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    )
    assert {killed.stdout.readline(), live.stdout.readline()} == {"writing\n"}
    (tmp_path / ".retired-0123").mkdir()
    killed.kill()
    killed.wait()
    assert len(list(tmp_path.glob(".writing-*"))) == 2
    token_cache(tmp_path, [([5, 1], [6, 1])])
    (left,) = tmp_path.glob(".writing-*")
    assert str(live.pid) in left.name and (left / "half").is_file()
    live.kill()
    live.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [left.name, "toy"]


def test_what_a_killed_process_left_beside_a_cache_is_cleared_when_that_is_opened(file_task, vocabulary, tmp_path):
    folder = open_cache(file_task[0], "train", vocabulary, tmp_path).folder
    (folder.parent / ".writing-1-2").mkdir()
    open_cache(file_task[0], "train", vocabulary, tmp_path)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_place_that_cannot_be_written_is_named_with_the_setting(file_task, vocabulary, tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", "/proc/no/such"):
        with pytest.raises(UserError, match=r"the cache folder .* cannot be written .*--cache_dir or the variable MPT_CACHE_DIR"):
            open_cache(file_task[0], "train", vocabulary, place)


def test_the_folder_of_caches(monkeypatch):
    monkeypatch.setenv("MPT_CACHE_DIR", "/given")
    assert checked_folder.cache_folder() == Path("/given") and checked_folder.cache_folder("~/mine") == Path.home() / "mine"
    with pytest.raises(UserError, match="holds a zero byte"):
        checked_folder.cache_folder("a\0b")


def test_a_disk_that_is_full_is_named_and_nothing_is_left(file_task, tmp_path):
    """The kernel refuses to write beyond a limit, as it does on a full disk."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "from pathlib import Path; from tiny_data import token_cache\n"
        "token_cache(Path(sys.argv[1]), [([5] * 100, [6, 1])] * 9)"
    )
    (tmp_path / "full").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "full")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert "UserError: the cache folder" in done.stderr and "cannot be written (File too large)" in done.stderr
    assert list((tmp_path / "full").iterdir()) == []


def test_half_a_surrogate_pair_in_a_field_of_its_own_comes_back(table, vocabulary, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"s": "fun", "user": "\\ud83d", "label": 1}\n')
    tasks.jsonl("tweets", files={"train": tmp_path / "a.jsonl"}, template="{s}", labels=("no", "yes"))
    assert open_cache("tweets", "train", vocabulary, tmp_path / "cache").extra(0)["user"] == "\ud83d"


def test_embeddings_beyond_half_precision_are_refused(tmp_path):
    rows = [{"inputs": np.array([5, 1]), "targets": np.array([1]), "embedding": np.array([value])} for value in (1.0, 1e6)]
    key = {"format": 1, "task": "toy", "split": "train", "vocabulary": "", "ingredients": {}}
    with pytest.raises(UserError, match="row 1: its embedding is not finite, or beyond what float16 holds"):
        cache_writer.write(key, rows, byte_vocabulary(), tmp_path / "toy")


def test_a_task_that_nobody_registers_opens_as_it_was_written_last_and_stands_in(file_task, vocabulary, tmp_path, caplog):
    name, source = file_task
    open_cache(name, "train", vocabulary, tmp_path)
    source.write_text(json.dumps(RECORDS[0]) + "\n")
    last = open_cache(name, "train", vocabulary, tmp_path)
    task = tasks.TABLE.pop(name)
    with caplog.at_level("WARNING"):
        assert open_cache(name, "train", vocabulary, tmp_path).folder == last.folder
    assert f"Task {name} is known from its cache alone (scored by accuracy)" in caplog.text
    there = tasks.TABLE[name]
    assert (there.kind, there.labels, there.template, there.splits) == ("cached", task.labels, task.template, ("train",))
    assert tasks.main_score(name) == "accuracy"
    with pytest.raises(UserError, match="no token cache of task .* and MIXTURE_OR_TASK_MODULE, which registers the task"):
        open_cache(name, "test", vocabulary, tmp_path)


def test_a_name_that_seqio_and_the_table_share_is_not_taken_from_the_table(seqio_task, table, vocabulary, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    tasks.jsonl("ordinary_toy", files={"train": tmp_path / "a.jsonl"}, template="{text}", labels=("no", "yes"))
    with pytest.raises(tasks.TaskError, match="'ordinary_toy' is a SeqIO task and also a task of the table"):
        open_cache("ordinary_toy", "train", vocabulary, tmp_path / "cache")


@pytest.mark.parametrize("field", ["text", "answer"])
def test_texts_of_which_the_vocabulary_can_write_nothing_are_refused(table, field, tmp_path):
    row = {"text": "x", "answer": "y"} | {field: "\u200b"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    tasks.jsonl("nothing", files={"train": tmp_path / "a.jsonl"}, template="{text}", target="{answer}")
    with pytest.raises(UserError, match="task 'nothing', split 'train', row 0: .* can write nothing: correct or remove the row"):
        open_cache("nothing", "train", load_vocabulary(SHIPPED / "nano"), tmp_path / "cache")


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    folder = token_cache(tmp_path, [([5, 1], [6, 1])]).folder
    for name in ("extra.bin", "meta.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match=f"{name}' is (missing|not a file)"):
            read_cache(folder)


def test_names_in_a_folder_of_caches(tmp_path, vocabulary):
    token_cache(tmp_path / "toy" / "train", [([5, 1], [6, 1])], name="0123456789abcdef")
    (tmp_path / "other" / "train").mkdir(parents=True)
    found = cached_names(tmp_path)
    assert "toy" in found and "other" not in found and "../toy" not in found and None not in found
    assert "t" * 300 not in found
    assert list(found) == ["toy"] and len(found) == 1 and list(cached_names(tmp_path / "none")) == []


def test_rows_that_cannot_be_trained_on_are_named(tmp_path):
    for row, text in (
        (([], [1]), "'toy', split 'train', row 1: the input has no tokens"),
        (([5, 384], [1]), "row 1: 'inputs' has id 384, allowed are 1..383"),
        (([5, 1], [0, 1]), "row 1: 'targets' has id 0"),
    ):
        with pytest.raises(UserError, match=text):
            token_cache(tmp_path, [([5, 1], [1]), row])
    with pytest.raises(UserError, match="has no rows"):
        token_cache(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_empty_targets_and_embeddings_are_kept(tmp_path):
    cache = token_cache(tmp_path, [([5, 1], []), ([6, 1], [])], embedding=3)
    assert cache.targets(1).tolist() == [] and cache.target_lengths.tolist() == [0, 0]
    assert cache.embedding.dtype == np.float16 and cache.embedding.tolist() == [[0] * 3, [1] * 3]


def test_names_cannot_leave_the_cache_folder(vocabulary, tmp_path):
    for name, split in (("../toy", "train"), ("/toy", "train"), ("toy", "../../train")):
        with pytest.raises(UserError, match="'..' and absolute"):
            open_cache(name, split, vocabulary, tmp_path)


def environment():
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu"}


OPEN_WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = sys.modules["seqio"] = None
import tasks
from mpt_jax.data.batches import BatchSpec, batch_iterator
from mpt_jax.data.cache import cached_names, open_cache
from mpt_jax.data.sampler import Stream
from mpt_jax.data.vocabulary import load_vocabulary

name, source, folder, pieces = sys.argv[1:]
if source:
    tasks.jsonl(name, files={"train": source}, template="toy text: {text}", labels=("no", "yes"))
assert tasks.expand([name], cached=cached_names(folder)) == (name,)
cache = open_cache(name, "train", load_vocabulary(pieces), folder, build=False)
stream = Stream(seed=0, caches=(cache,), bank_index=(0,), batch_size=2)
iterator = batch_iterator([stream], BatchSpec(16, 4, 2), 1)
print(cache.rows, next(iterator).examples)
iterator.close()
"""


@pytest.mark.parametrize("kind", ["table", "ordinary"])
def test_training_from_a_cache_needs_no_tensorflow(kind, request, vocabulary, tmp_path):
    if kind == "table":
        name, source = request.getfixturevalue("file_task")
    else:
        name, source = request.getfixturevalue("seqio_task").name, ""
    cache = write_cache(name, "train", vocabulary, tmp_path / "cache")
    arguments = [
        sys.executable,
        "-c",
        OPEN_WITHOUT_TENSORFLOW,
        name,
        str(source),
        str(tmp_path / "cache"),
        piece_file(),
    ]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(cache.rows), "2"]


def test_key_names_everything_that_went_in(file_task, vocabulary):
    key = cache_module.cache_key(file_task[0], "train", vocabulary)
    assert key["format"] == cache_module.FORMAT and key["vocabulary"] == vocabulary.fingerprint
    assert key["ingredients"] == tasks.ingredients(file_task[0], "train")
    assert cache_module.key_name(key) != cache_module.key_name(key | {"split": "test"})
