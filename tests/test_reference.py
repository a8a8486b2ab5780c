"""The reference: every public name has a docstring with an example, the examples run, and pdoc makes pages of them."""

import doctest
import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from test_prose import LONGEST_SENTENCE, found, sentences, words
from tiny_run import row, write_run

import mpt_jax
from mpt_jax import tasks
from mpt_jax.config import BackboneSettings
from mpt_jax.methods import table as methods
from mpt_jax.model import families, formats
from mpt_jax.model.backbone import load_backbone
from mpt_jax.model.families.family import Adaptation, Adapted

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)
NAMES = [f"{module}.{name}" for module, names in reference.PUBLIC.items() for name in names]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public(name: str):
    """What a public name stands for."""
    module, _, own = name.rpartition(".")
    return getattr(importlib.import_module(module), own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the examples find in their folder: a run of 20 prompt vectors for nano, and a few rows."""
    folder = tmp_path_factory.mktemp("examples")
    backbone = load_backbone(BackboneSettings("nano"))
    bank = {"bank/shared": np.asarray(backbone.params["token_embedder"]["embedding"][100:120], np.float32)[None]}
    described = {"backbone": "nano", "fingerprint": backbone.fingerprint}
    write_run(folder / "runs" / "target", [row("definition_valence")], bank, bank, **described)
    (folder / "mood_train.jsonl").write_text('{"text": "a joy from start to end", "label": "positive"}\n')
    (folder / "mood_dev.jsonl").write_text('{"text": "a bore", "label": "negative"}\n')
    (folder / "capitals.tsv").write_text("country\tcapital\nPeru\tLima\n")
    (folder / "towns.csv").write_text('Peru,"Lima, on the coast"\n')
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """The run of the examples, loaded once."""
    return mpt_jax.load(folder / "runs" / "target")


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_described_in_plain_sentences_with_an_example(name):
    thing = public(name)
    described = [thing, *(member for own, member in vars(thing).items() if inspect.isfunction(member) and not own.startswith("_"))]
    texts = [inspect.getdoc(one) for one in (described if inspect.isclass(thing) else [thing])]
    assert all(texts) and ">>> " in texts[0]
    prose = "\n\n".join(part for text in texts for part in text.split("\n\n") if not part.lstrip().startswith(">>>"))
    assert found(prose) == []
    assert [sentence for sentence in sentences(prose) if words(sentence) > LONGEST_SENTENCE] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_run(name, folder, run, table, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tasks.scores, "SCORES", dict(tasks.scores.SCORES))
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    given = {"mpt_jax": mpt_jax, "tasks": tasks, "formats": formats, "families": families, "np": np, "jnp": jnp, "run": run}
    given |= {"Adaptation": Adaptation, "Adapted": Adapted}
    thing, said = public(name), []
    around = {**vars(sys.modules[thing.__module__]), **given}
    around.pop("__file__")
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    examples = doctest.DocTestFinder().find(thing, name, module=False, globs=around)
    for example in examples:
        runner.run(example, out=said.append)
    result = runner.summarize(verbose=False)
    assert result.attempted and not result.failed, "".join(said)


def test_the_index_names_the_command_that_writes_the_reference():
    assert "python docs/reference.py" in (ROOT / "docs" / "README.md").read_text()
    assert "python docs/reference.py" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.slow
def test_pdoc_makes_a_page_for_each_module(tmp_path):
    pytest.importorskip("pdoc")
    command = [sys.executable, ROOT / "docs" / "reference.py", tmp_path / "reference"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference" / "index.html").is_file()
    for module, names in reference.PUBLIC.items():
        page = (tmp_path / "reference" / Path(*module.split("."))).with_suffix(".html").read_text()
        for name in names:
            assert f'id="{name}"' in page and "&gt;&gt;&gt;" in page, (module, name)
    assert "make_batch" not in page
