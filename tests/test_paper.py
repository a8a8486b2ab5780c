"""The paper's tasks: golden rows, splits, variants, mixtures, what is said where data is missing."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fixture_folders import data_folder
from mpt_jax.tasks import paper
from mpt_jax.tasks.paper import location, prepare, reading, sets, splits
from paper_files import write_published
from tiny_data import shared_vocabulary_file

from mpt_jax import tasks
from mpt_jax.data.vocabulary import load_vocabulary

GOLDEN_IDS = Path(__file__).parent / "golden_paper.json"
# the row that row 0 of `train` becomes: what the model reads, the label word or text, the label index
GOLDEN = {
    "mnli": ("mnli premise: A man train 0. hypothesis: He sleeps.", "entailment", 0),
    "qqp": ('qqp question1: Is train 0 "odd"? question2: Is it odd?', "not_duplicate", 0),
    "qnli": ("qnli question: Who train 0? sentence: Ann did.", "entailment", 0),
    "sst2": ("sst2 sentence: a fine train film 0 ", "negative", 0),
    "stsb": ("stsb sentence1: A plane train 0. sentence2: A bird.", "2.8", None),
    "mrpc": ('mrpc sentence1: He said "train 0" . sentence2: He said so .', "not_equivalent", 0),
    "rte": ("rte sentence1: Ann train 0 won. sentence2: Ann lost.", "not_entailment", 1),
    "cola": ("cola sentence: Them train 0 sleeps.", "unacceptable", 0),
    "superglue_multirc": (
        "superglue-multirc question: Who ran 0? answer: Answer 0 paragraph: Sent 1: A dog ran train 0. It sat.", "False", 0,
    ),
    "superglue_boolq": ("superglue-boolq question: is train 0 odd passage: Odd -- Numbers.", "True", 1),
    "superglue_wic": ("superglue-wic sentence1: The bank train 0. sentence2: A bank. word: bank", "False", 0),
    "superglue_wsc": ("superglue-wsc.fixed text: Today train0 * the cat * said # it # slept.", "False", 0),
    "superglue_cb": ("superglue-cb premise: It is train 0. hypothesis: it is", "neutral", 2),
    "superglue_record": (
        "superglue-record record query: @placeholder left entities: Ann, Bob passage: Ann met Bob in train 0. Bob left", "Ann", None,
    ),
    "squad": ("squad question: How tall ( train 0 ) ? context: It was a 42 m . tower .", "42 m .", None),
    **{
        name: (f"{name} question: who won context: [ PAR ] Ann won train 0 , twice .", "Ann", None)
        for name in sets.MIXTURES["mrqa"]
    },
    "winogrande": ("winogrande sentence: Ann train 0 met Eve and _ left. option0: Ann option1: Eve", "option0", 0),
    "yelp_polarity": ('yelp_polarity sentence: The train "pub" 0 was fine.', "negative", 0),
    "scitail": ("scitail premise: Ice train 0 melts. hypothesis: Ice is wet.", "neutral", 1),
    "paws": ("paws sentence1: A train 0 b . sentence2: B a .", "not_equivalent", 0),
    "e2e_nlg": ("e2e_nlg meaning: name[The train 0], eatType[pub]", "The train 0 is a pub.", None),
    "web_nlg": ("web_nlg triples: Rome train 0 | country | Italy && Italy | capital | Rome", "Rome train 0 is in Italy.", None),
}  # fmt: skip
# where ATTEMPT's text or target differs by more than the label's index
PUBLISHED = {
    "stsb": (GOLDEN["stsb"][0], "2.7"),
    **{name: ("squad" + GOLDEN[name][0].removeprefix(name), "Ann") for name in sets.MIXTURES["mrqa"]},
    "winogrande": ("winogrande sentence: Ann train 0 met Eve and _ left. option0: Ann option1: Ann", "0"),
    "yelp_polarity": ('yelp_polarity sentence: The train ""pub"" 0\\nwas fine.', "0"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture
def data(folder, monkeypatch):
    """All sets, tiny, with dev splits of two rows."""
    monkeypatch.setenv(location.DATA_FOLDER, str(folder))
    monkeypatch.setattr(reading, "DEV_ROWS", 2)
    return folder


def all_rows(name):
    return [row for split in ("train", "validation") for row in tasks.rows(name, split)]


def test_every_set_has_a_golden_row():
    assert set(GOLDEN) == set(sets.SETS)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_rows(data, name):
    inputs, targets, label = GOLDEN[name]
    (row,) = [row for row in all_rows(name) if (row["inputs"], row["targets"]) == (inputs, targets)]
    assert row.get("label") == label
    if label is not None:
        assert (inputs, str(label)) in [(row["inputs"], row["targets"]) for row in all_rows(f"{name}:index")]
    published = PUBLISHED.get(name, (inputs, targets if label is None else str(label)))
    assert published in [(row["inputs"], row["targets"]) for row in all_rows(f"{name}:published")]


@pytest.mark.parametrize("name", [*GOLDEN, *(f"{name}:published" for name in GOLDEN)])
def test_records_without_answers_can_be_predicted_for(data, name):
    row = sets.SETS[name.partition(":")[0]]
    expected = {row["inputs"] for row in tasks.rows(name, "test")}
    role = "validation" if row.carving == sets.HALVES else "test"
    found = set()
    for record in location.read(row, location.locate(row), role):
        open_record = {key: value for key, value in record.items() if key not in ("label", "answers", "answer", "target", "idx")}
        open_record |= {"answer": record["answer"]} if "answer: {answer}" in row.template else {}
        found.add(tasks.inputs_text(tasks.TABLE[name], open_record, "a record"))
    assert expected <= found
    with pytest.raises(tasks.TaskError, match="a record: no field"):
        tasks.inputs_text(tasks.TABLE[name], {"other": 1}, "a record")


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_ids_of_the_real_vocabulary(name):
    vocabulary = load_vocabulary(shared_vocabulary_file())
    inputs, targets, _ = GOLDEN[name]
    expected = json.loads(GOLDEN_IDS.read_text())[name]
    assert [vocabulary.encode(inputs), vocabulary.encode(targets)] == expected


@pytest.mark.parametrize("name", [*GOLDEN, *(f"{name}:published" for name in GOLDEN)])
def test_right_answers_score_full_marks(data, name):
    rows = list(tasks.rows(name, "test"))
    found = tasks.scorer(name)(rows, [row["targets"] for row in rows])
    best = {key: (0.0 if key in ("ter", "invalid") else 100.0) for key in found}
    labels = tasks.TABLE[name].labels
    constant = len({row["targets"] for row in rows}) < len(labels or "ab")  # a label that is nowhere has no F1, numbers no correlation
    if not constant:
        assert found == pytest.approx(best, abs=1e-6)
    assert found[tasks.main_score(name)] > 0 or constant
    if labels:
        assert tasks.scorer(name)(rows, ["?"] * len(rows))["invalid"] == 100.0


def group_of(name, row):
    return (row["paragraph"], row["question"]) if name == "superglue_multirc" else row["inputs"]


@pytest.mark.parametrize("name", GOLDEN)
def test_splits_are_disjoint_and_the_same_each_time(data, name):
    content = {split: [group_of(name, row) for row in tasks.rows(name, split)] for split in reading.SPLITS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not set(content[one]) & set(content[other])
    assert all(content.values())
    assert content == {split: [group_of(name, row) for row in tasks.rows(name, split)] for split in reading.SPLITS}
    if name not in ("superglue_multirc", "superglue_record", *sets.MIXTURES["nlg"]):
        sizes = [len(content[split]) for split in reading.SPLITS]
        assert sizes == {sets.HALVES: [8, 4, 4], sets.OF_TRAIN: [6, 2, 8], sets.OWN: [8, 8, 8]}[sets.SETS[name].carving]


def test_a_split_does_not_depend_on_the_order_of_the_rows(data, tmp_path, monkeypatch):
    before = {split: {row["inputs"] for row in tasks.rows("rte", split)} for split in reading.SPLITS}
    (tmp_path / "RTE").mkdir()
    for file in ("train.tsv", "dev.tsv"):
        header, *lines = (data / "RTE" / file).read_text().splitlines(keepends=True)
        (tmp_path / "RTE" / file).write_text("".join([header, *reversed(lines)]))
    monkeypatch.setenv(location.DATA_FOLDER, str(tmp_path))
    assert before == {split: {row["inputs"] for row in tasks.rows("rte", split)} for split in reading.SPLITS}


def test_splits_of_this_version_never_change(data):
    """The same rows on every machine, in every version of Python and NumPy: the dev split's content as a digest."""
    digest = hashlib.sha256("\n".join(row["inputs"] for name in GOLDEN for row in tasks.rows(name, "validation")).encode())
    assert digest.hexdigest()[:16] == "173d43b71af33658"


def test_rows_of_a_later_split_are_left_out_and_counted(tmp_path, monkeypatch, caplog):
    lines = [f"x\t{n % 2}\t*\tText {n}." for n in range(6)]
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "dev.tsv").write_text("\n".join([*lines, lines[0]]) + "\n")
    (tmp_path / "CoLA" / "train.tsv").write_text("\n".join([*lines[:2], "x\t1\t\tOther."]) + "\n")
    monkeypatch.setenv(location.DATA_FOLDER, str(tmp_path))
    assert [row["sentence"] for row in tasks.rows("cola", "train")] == ["Other."]
    assert "cola: 2 rows of 3 are also in a later split" in caplog.text
    halves = [[row["sentence"] for row in tasks.rows("cola", split)] for split in ("validation", "test")]
    assert sum(map(len, halves)) == 7 and not set(halves[0]) & set(halves[1])  # equal rows stay together
    assert len(list(tasks.rows("cola:published", "train"))) == 3


def test_multirc_keeps_questions_together(data):
    """Published: row by row, so that a question's answers can straddle; then its exact match is of parts."""
    by_split = {split: list(tasks.rows("superglue_multirc", split)) for split in ("validation", "test")}
    assert sum(map(len, by_split.values())) == 8 * 4 and len(by_split["validation"]) == 16
    assert all(count == 2 for rows in by_split.values() for count in Counter(row["group"] for row in rows).values())
    published = Counter(row["group"] for row in tasks.rows("superglue_multirc:published", "validation"))
    assert set(published.values()) == {1, 2}


def test_record_has_one_row_an_answer_in_training_only(data):
    train = Counter(row["inputs"] for row in tasks.rows("superglue_record", "train"))
    assert set(train.values()) == {1, 2}
    rows = list(tasks.rows("superglue_record", "test"))
    assert len(rows) == 8 and rows[0]["answers"] == ["Ann", "Bob"]
    assert tasks.scorer("superglue_record")(rows, ["Bob"] * 8)["em"] == 100.0
    assert len(list(tasks.rows("superglue_record:published", "test"))) == 12


def test_generation_has_one_row_an_input_in_evaluation(data):
    assert len(list(tasks.rows("e2e_nlg", "train"))) == 16
    rows = list(tasks.rows("e2e_nlg", "test"))
    assert len(rows) == 8 and rows[0]["references"] == ["The test-fixed 0 is a pub.", "The test-fixed 0 serves food."]


def test_yelp_is_capped(data, monkeypatch):
    row = dataclasses.replace(sets.SETS["yelp_polarity"], cap=3)
    assert len(list(reading.generate(row, "train"))) == len(list(reading.generate(row, "train", published=True))) == 3


# name: folder of the shared files, file of the published evaluation set, (train, dev, test) of PAPER 1.4 or what these files make of
# its rule, label counts of train; which files are not the published ones is told in docs/paper.md
REAL = {
    "rte": ("rte", "validation", (2_490, 138, 139), {"entailment": 1_249, "not_entailment": 1_241}),
    "superglue_cb": ("cb", "validation", (250, 28, 28), {"entailment": 115, "contradiction": 119, "neutral": 16}),
    # 1.4: 8,551 / 521 / 522; the file of train has 7,250, of which 11 also stand in the evaluation set
    "cola": ("cola", "validation", (7_250 - 11, 521, 522), {"acceptable": 5_078, "unacceptable": 2_161}),
    # 1.4: 66,349 / 1,000 / 872; the file of train has 6,920 whole sentences in place of 67,349 phrases
    "sst2": ("sst2", "validation", (6_920 - 1_000, 1_000, 872), {"positive": 3_082, "negative": 2_838}),
    # 1.4: 3,668 / 204 / 204; the file of train has 4,080, a file of the dev set is absent: its rule on the published test set
    "mrpc": ("mrpc", "test", (4_080, 862, 863), {"equivalent": 2_755, "not_equivalent": 1_325}),
}
# what the model reads and writes, by the field names and label order of the shared files
REAL_TEXTS = {
    "rte": ("rte sentence1: {premise} sentence2: {hypothesis}", ("entailment", "not_entailment")),
    "superglue_cb": ("superglue-cb premise: {premise} hypothesis: {hypothesis}", ("entailment", "contradiction", "neutral")),
    "cola": ("cola sentence: {sentence}", ("unacceptable", "acceptable")),
    "sst2": ("sst2 sentence: {sentence}", ("negative", "positive")),
    "mrpc": ("mrpc sentence1: {sentence1} sentence2: {sentence2}", ("not_equivalent", "equivalent")),
}


def real_rows(name, file):
    """(input, target) of each row of a shared file, by hand."""
    template, labels = REAL_TEXTS[name]
    path = Path(data_folder("tasks")) / REAL[name][0] / f"{file}.jsonl"
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(template.format(**row), labels[row["label"]]) for row in rows]


@pytest.fixture
def real(tmp_path, monkeypatch):
    """The shared files by the names under which they are looked for."""
    for folder, evaluation, *_ in REAL.values():
        (tmp_path / folder).mkdir()
        for name, file in (("train", "train"), ("validation", evaluation)):
            (tmp_path / folder / f"{name}.jsonl").symlink_to(Path(data_folder("tasks")) / folder / f"{file}.jsonl")
    monkeypatch.setenv(location.DATA_FOLDER, str(tmp_path))


@pytest.mark.parametrize("name", REAL)
def test_splits_of_real_files(name, real):
    """Sizes, label counts, and every text and target against the shared files."""
    _, evaluation, sizes, labels = REAL[name]
    found = {split: [(row["inputs"], row["targets"]) for row in tasks.rows(name, split)] for split in reading.SPLITS}
    assert tuple(map(len, found.values())) == sizes
    assert Counter(target for _, target in found["train"]) == labels
    train, held_out = real_rows(name, "train"), real_rows(name, evaluation)
    texts = [{text for text, _ in rows} for rows in found.values()]
    assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])
    if sets.SETS[name].carving == sets.HALVES:
        assert Counter(found["validation"] + found["test"]) == Counter(held_out)
        known = {text for text, _ in held_out}
        assert Counter(found["train"]) == Counter(row for row in train if row[0] not in known)
    else:
        assert Counter(found["train"] + found["validation"]) == Counter(train)
        assert Counter(found["test"]) == Counter(held_out)
    published = {split: list(tasks.rows(f"{name}:published", split)) for split in reading.SPLITS}
    assert tuple(len(published[split]) for split in ("validation", "test")) == sizes[1:]
    indices = Counter((row["inputs"], REAL_TEXTS[name][1][int(row["targets"])]) for rows in published.values() for row in rows)
    assert indices == Counter(train + held_out)


def test_real_texts(monkeypatch):
    monkeypatch.setenv(location.DATA_FOLDER, data_folder("tasks"))
    first = next(tasks.rows("rte", "train"))
    assert first["inputs"].startswith("rte sentence1: No Weapons of Mass Destruction Found in Iraq Yet. sentence2: Weapons of Mass")
    with pytest.raises(tasks.TaskError, match=r"no MRPC/dev\.tsv in .*found there: .*mrpc/train\.jsonl"):
        list(tasks.rows("mrpc", "train"))


def test_the_page_names_every_set_and_its_files():
    page = (Path(__file__).parent.parent / "docs" / "paper.md").read_text()
    for name, row in sets.SETS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}`")]
        wanted = [row.tfds, *row.aliases, *(row.files[split][0][0] for split in sets.ROLES[row.carving])]
        assert all(part in line for part in wanted), name


def test_torch_permutation():
    """The published splits come from torch.randperm under seed 42."""
    assert splits.torch_permutation(8).tolist() == [6, 3, 0, 7, 2, 1, 4, 5]
    assert [len(splits.torch_permutation(size)) for size in (0, 1)] == [0, 1]
    torch = pytest.importorskip("torch")
    for size in (2, 277, 1043):
        expected = torch.randperm(size, generator=torch.Generator().manual_seed(42)).numpy()
        np.testing.assert_array_equal(splits.torch_permutation(size), expected)


def test_pick_takes_whole_groups():
    keys = [splits.key_of(text) for text in "aabbbcdef"]
    for count in range(10):
        chosen = splits.pick(keys, count, "x")
        assert chosen.sum() == count or count in (1, 2, 3, 7, 8)
        assert chosen[0] == chosen[1] and chosen[2] == chosen[3] == chosen[4]


def test_missing_data_is_told_at_once(tmp_path):
    code = (
        "import sys, tasks, time\n"
        "for name in tasks.paper.SETS:\n"
        "    for call in (lambda: next(tasks.rows(name, 'train')), lambda: tasks.ingredients(name, 'test')):\n"
        "        start, text = time.monotonic(), ''\n"
        "        try: call()\n"
        "        except tasks.TaskError as error: text = str(error)\n"
        "        assert time.monotonic() - start < 5\n"
        "        for part in (name, 'https://', 'MPT_TASK_DATA', '--task_data_dir', 'tensorflow_datasets.load'):\n"
        "            assert part in text, text\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("MPT_TASK_DATA", "TFDS_DATA_DIR")}
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, "HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("file", "text", "name", "message"),
    [
        ("SST-2/train.tsv", "text\tlabel\na\t1\n", "sst2", r"SST-2/train\.tsv:2: no field 'sentence', there are 'text', 'label'"),
        ("SST-2/train.tsv", "sentence\tlabel\na\n", "sst2", r"train\.tsv:2: 1 columns, 2 are needed"),
        ("SST-2/train.tsv", "sentence\tlabel\na\t7\n", "sst2", r"label '7' is none of negative, positive"),
        ("SST-2/train.tsv", "sentence\tlabel\n", "sst2", "split holds no row"),
        ("BoolQ/train.jsonl", "{\n", "superglue_boolq", r"train\.jsonl:1: not JSON"),
        ("BoolQ/train.jsonl", '{"question": "a", "label": true}\n', "superglue_boolq", r"no field 'passage'"),
        ("SQuAD/train-v1.1.json", "{}", "squad", "not SQuAD's JSON"),
        ("yelp_review_polarity_csv/train.csv", "1,a\n", "yelp_polarity", r"train\.csv:1: the line must start"),
        ("E2E/train-fixed.no-ol.csv", "a,b\n1,2\n", "e2e_nlg", "no field 'mr'"),
    ],
)
def test_bad_files(folder, tmp_path, monkeypatch, file, text, name, message):
    top = file.split("/")[0]
    shutil.copytree(folder / top, tmp_path / top)
    (tmp_path / file).write_text(text)
    monkeypatch.setenv(location.DATA_FOLDER, str(tmp_path))
    with pytest.raises(tasks.TaskError, match=message):
        list(tasks.rows(name, "train"))


@pytest.mark.parametrize("name", ["rte", "rte:published"])
def test_a_field_that_is_missing(tmp_path, monkeypatch, name):
    (tmp_path / "rte").mkdir()
    for file in ("train.jsonl", "validation.jsonl"):
        (tmp_path / "rte" / file).write_text('{"sentence1": "a", "label": 0}\n')
    monkeypatch.setenv(location.DATA_FOLDER, str(tmp_path))
    with pytest.raises(tasks.TaskError, match="task 'rte': a row has no field 'sentence2'; its fields are sentence1, label"):
        list(tasks.rows(name, "train"))


def test_broken_rows_of_qqp_are_left_out(folder, tmp_path, monkeypatch):
    (tmp_path / "qqp").mkdir()  # names may be in any case
    for file in ("train.tsv", "dev.tsv"):
        (tmp_path / "qqp" / file).write_text((folder / "QQP" / file).read_text() + "9\t1\n")
    monkeypatch.setenv(location.DATA_FOLDER, str(tmp_path))
    monkeypatch.setattr(reading, "DEV_ROWS", 2)
    assert len(list(tasks.rows("qqp", "train"))) == 6


def test_files_key_the_cache(data, tmp_path, monkeypatch):
    before = tasks.ingredients("rte", "train")
    assert json.loads(json.dumps(before)) == before
    assert before["origin"]["files"].keys() == {"train", "validation"}
    assert before != tasks.ingredients("rte:published", "train") and before != tasks.ingredients("rte:index", "train")
    (tmp_path / "RTE").mkdir()
    for file in ("train.tsv", "dev.tsv"):
        (tmp_path / "RTE" / file).write_text((data / "RTE" / file).read_text())
    monkeypatch.setenv(location.DATA_FOLDER, str(tmp_path))
    assert tasks.ingredients("rte", "train") == before
    (tmp_path / "RTE" / "dev.tsv").write_text((data / "RTE" / "dev.tsv").read_text() + "9\ta\tb\tentailment\n")
    assert tasks.ingredients("rte", "train") != before


def test_mixtures_aliases_and_variants():
    assert tasks.expand("glue") == ("mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "cola")
    assert len(tasks.expand(["mpt_sources", "glue", "superglue", "mrqa", "others", "nlg"])) == 6 + 4 + 5 + 4 + 4 + 2
    assert tasks.expand(["superglue-boolq", "super_glue_cb_v102", "nq"]) == ("superglue_boolq", "superglue_cb", "naturalquestions")
    assert tasks.expand("glue:index")[3:5] == ("sst2:index", "stsb")
    assert tasks.expand("mrqa:published")[0] == "naturalquestions:published"
    assert paper.variant_of("rte", "indices") == "rte:index" and paper.variant_of("stsb", "indices") == "stsb"
    assert paper.variant_of("stsb", as_published=True) == "stsb:published" and paper.variant_of("mine", "indices", True) == "mine"
    with pytest.raises(tasks.TaskError, match="nearest names are superglue"):
        tasks.expand("supergleu")
    with pytest.raises(tasks.TaskError, match="mixture 'glue': the name is taken"):
        tasks.add_mixture("glue", ["rte"])


def test_a_users_task_takes_the_place_of_a_shipped_one(table, tmp_path, caplog):
    task = tasks.jsonl("rte", files={"train": tmp_path / "a.jsonl"}, template="{a}", target="{b}")
    assert tasks.TABLE["rte"] is task and "replaces the shipped task" in caplog.text
    assert paper.variant_of("rte", "indices") == "rte"


@pytest.mark.parametrize(
    ("text", "span", "index", "marked"),
    [
        ("Jim (a man) ran.", "Jim", 0, "* Jim * (a man) ran."),
        ("a b a b", "a", 2, "a b * a * b"),
        ("the old cat, it", "cat", 1, "the old * cat *, it"),  # the index is wrong: the nearest occurrence
        ("he said (it) ends", "(it)", 2, "he said * (it) * ends"),
        ("Always the man won", "The man.", 1, "Always * the man * won"),
        ("Kamenev with Zinoviev left", "Kamenev and Zinoviev", 0, "* Kamenev * with Zinoviev left"),
    ],
)
def test_spans_are_marked(text, span, index, marked):
    assert prepare.mark_span(text, span, index, "*") == marked


def test_spans_that_are_not_there():
    assert prepare.mark_span("a cat", "dog", 1, "*", exact=True) == "a cat"
    with pytest.raises(tasks.TaskError, match="span 'dog' should start at word 2, but the text has 2 words"):
        prepare.mark_span("a cat", "dog", 2, "*")


def test_pad_punctuation():
    assert prepare.pad_punctuation("U.S.  (42%), naïve_x—東京!") == "U . S . ( 42 % ) , naïve_x — 東京 !"
    assert prepare.pad_punctuation("e\u0301a") == "e\u0301a"


@pytest.mark.parametrize(
    ("value", "ours", "published"), [(2.716, "2.8", "2.7"), (0.1, "0.0", "0.1"), (5, "5.0", "5.0"), (3.25, "3.2", "3.2")]
)
def test_similarities_are_rounded(value, ours, published):
    record = {"sentence1": "a", "sentence2": "b", "label": value}
    assert [prepare.stsb(record, way)["score"] for way in (False, True)] == [ours, published]
