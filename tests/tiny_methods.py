"""Each method of the table in small: its settings, programs that train it, and parameters away from where it starts."""

import functools
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from tiny_families import LLAMA, T5GEMMAS, T5S
from tiny_families import weights as family_weights
from tiny_model import LENGTH, tiny
from tiny_model import weights as t5_weights
from tiny_run import row, write_run

from mpt_jax.config import BackboneSettings, Computation, DataSettings, OptimizerSettings, PromptSettings, Settings, TrainSettings
from mpt_jax.methods.adapter import AdapterSettings
from mpt_jax.methods.attempt import AttemptSettings
from mpt_jax.methods.bitfit import BitfitSettings
from mpt_jax.methods.dept import DeptSettings
from mpt_jax.methods.ia3 import Ia3Settings
from mpt_jax.methods.lora import LoraSettings
from mpt_jax.methods.method import KEPT, MUST, Method, Start, part_of, take
from mpt_jax.methods.prefix import PrefixSettings
from mpt_jax.methods.table import method_named, own_settings
from mpt_jax.methods.vectors import VectorSettings
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.families.family import Network
from mpt_jax.train.program import Program, assemble

SETTINGS = {  # of each method, and variants of it after a colon
    "lora": LoraSettings(rank=2, alpha=4.0),
    "lora:all": LoraSettings(rank=3, matrices=("query", "key", "value", "out", "wo"), rank_stabilised=True, biases=True),
    "ia3": Ia3Settings(),
    "bitfit": BitfitSettings(),
    "adapter": AdapterSettings(reduction=4),
    "adapter:drop": AdapterSettings("pfeiffer", reduction=8, drop_layers=1),
    "prefix": PrefixSettings(init_scale=0.5),
    "prefix:made": PrefixSettings(hidden=5, init_scale=0.3),
    "dept": DeptSettings(rank=2),
    "attempt": AttemptSettings(hidden=5, temperature=2.0),
    "vectors": VectorSettings(threshold=-1.0, scale_init=0.5),
}
NAMES = tuple(SETTINGS)
SOURCES = 3
T5 = tiny()  # over bytes
DEEPER = tiny(num_encoder_layers=2, num_decoder_layers=2)
CAUSAL = CausalConfig("tiny", 384, 16, 1, 4, 2, 8, 32, logits_via_embedding=True)  # over bytes
FAMILIES = {"t5": T5S["codet5p"], "umt5": T5S["umt5"], "causal": LLAMA, "t5gemma": T5GEMMAS["t5gemma"], "t5gemma2": T5GEMMAS["t5gemma2"]}
TEACHERS = PromptSettings(length=LENGTH, rank=0, transfer="none", init="uniform")


def method_of(name: str) -> Method:
    """The row of a method or of a variant of it."""
    return method_named(name.partition(":")[0])


def source_of(config) -> tuple[dict, dict]:
    """Arrays and run.json of prompts of SOURCES tasks, as a run of teachers has them."""
    prompts = np.random.default_rng(8).normal(size=(SOURCES, LENGTH, config.d_model)).astype(np.float32)
    rows = [row(f"source{n}", 1, n) for n in range(SOURCES)]
    described = Settings(TrainSettings("teacher"), prompt=TEACHERS).describe()
    return {"bank/shared": prompts}, {"runs": rows, "settings": described}


@functools.cache
def source_dir(config) -> str:
    """The same as a run folder."""
    folder = Path(tempfile.mkdtemp(prefix="source-"))
    arrays, run = source_of(config)
    write_run(folder, run["runs"], arrays)
    written = json.loads((folder / "run.json").read_text())
    written["settings"]["prompt"] = run["settings"]["prompt"]
    (folder / "run.json").write_text(json.dumps(written))
    return str(folder)


def settings_of(name: str, stage: str = "", config=T5, **train) -> Settings:
    """Settings of a method's program over bytes; ``train``: of TrainSettings."""
    from_source = method_of(name).from_source == MUST
    stage = stage or ("target" if from_source else "teacher")
    train = {"model_dir": "x", "method": name.partition(":")[0], "train_steps": 20, **train}
    train |= {"source_dir": source_dir(config)} if from_source else {}
    optimizer = OptimizerSettings(learning_rate=0.01, factor_learning_rate=0.01, schedule="constant", warmup_steps=0)
    prompt = PromptSettings(length=LENGTH, rank=0, transfer="mean" if from_source else "none")
    # one shape of micro-batches, of two runs each where there are several
    data = DataSettings(feature_lengths={"inputs": 16, "targets": 8}, micro_batch_size=16, input_buckets=(16,), target_buckets=(8,))
    return Settings(TrainSettings(stage, **train), BackboneSettings(), prompt, optimizer=optimizer, data=data, method=SETTINGS.get(name))


def backbone_of(config) -> Backbone:
    """A backbone over bytes."""
    return Backbone("tiny", config, (family_weights if config is CAUSAL else t5_weights)(config), "bytes", "f" * 16)


def program_of(name: str, tasks=("a",), config=T5, mesh=None, **train) -> Program:
    """The program of a method on a tiny backbone."""
    config = DEEPER if name == "adapter:drop" else config
    return assemble(settings_of(name, config=config, **train), tasks, backbone_of(config), mesh)


def start_of(name: str, config, seeds=(1,)) -> Start:
    """What a method starts from on a backbone of any family, a group for each seed."""
    method = method_of(name)
    settings = own_settings(settings_of(name, config=config), method)
    network, groups = Network(config, Computation(), method.adaptation), np.arange(len(seeds), dtype=np.int32)
    source = source_of(config) if method.from_source == MUST else None
    return Start(settings, network, family_weights(config), groups, seeds, ("a",) * len(seeds), None, source)


def moved(arrays: dict, parts, seed: int = 0, spread: float = 0.2) -> dict:
    """Parameters with random numbers added, except those that a method keeps."""
    rng = np.random.default_rng(seed)
    return {
        path: array if part_of(path, parts).param_group == KEPT else np.asarray(array + spread * rng.normal(size=array.shape), np.float32)
        for path, array in sorted(arrays.items())
    }


def own_of_rows(name: str, own: dict, tasks: list[int], groups: int) -> dict:
    """A method's parameters of rows of these tasks, each its own group."""
    return jax.tree.map(np.asarray, take(own, method_of(name).parts, np.arange(groups, dtype=np.int32), np.array(tasks)))
