"""T5X's own commands in this process: the same functions and gin files as `python -m t5x.train` and its siblings."""

import contextlib
import functools
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import gin
from mpt_jax.macros import GIN_FOLDER

FUNCTIONS = {"train": "train", "eval": "evaluate", "infer": "infer"}


def need_t5x() -> None:
    """Skips a test, saying how to get T5X, where it is missing."""
    try:
        importlib.import_module("mpt_jax.t5x_bridge")
    except ImportError as error:
        pytest.skip(str(error))


@functools.cache
def _configurable(name: str):
    module = importlib.import_module(f"t5x.{name}")
    return module, gin.configurable(getattr(module, FUNCTIONS[name]), module=f"t5x.{name}")


@contextlib.contextmanager
def _as_main(module):
    """The gin files of T5X name the running script by `__main__`."""
    before = sys.modules["__main__"]
    sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.modules["__main__"] = before
        gin.clear_config()


def t5x(name: str, *files: str, **macros):
    """Runs T5X's train, eval or infer with files of gin/t5x; in names of bindings ``__`` stands for a dot."""
    from t5x import gin_utils

    gin.clear_config()  # one that is locked takes no new names
    module, function = _configurable(name)
    bindings = [f"{key.replace('__', '.')} = {value!r}" for key, value in macros.items()]
    t5x_folder = str(Path(module.__file__).parents[1])
    with _as_main(module):
        gin_utils.parse_gin_flags([str(GIN_FOLDER), t5x_folder], [f"t5x/{file}.gin" for file in files], bindings)
        return function()


def events(folder: Path) -> dict[str, np.ndarray]:
    """The scalars that T5X wrote to TensorBoard, by name: (values,) in the order of steps."""
    import tensorflow as tf

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events.out.tfevents*")):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                array = tf.make_ndarray(value.tensor)
                if array.dtype.kind == "f" and array.ndim == 0:
                    found.setdefault(value.tag, {})[event.step] = float(array)
    return {name: np.array([values[step] for step in sorted(values)]) for name, values in found.items()}
