"""LoRA, (IA)3 and prefix tuning of a run: out to PEFT's adapters and back in as a run, or folded into the weights of a backbone.

PEFT names modules as Hugging Face's models do; the tables of names of the families tell which of ours they are. What PEFT's adapters
cannot hold is refused. Sources: peft/tuners/{lora,ia3}/layer.py, peft/peft_model.py (get_prompt).
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mpt_jax.checkpoint import Checkpoints, load_trainable
from mpt_jax.config import BackboneSettings, Settings, TrainSettings
from mpt_jax.errors import UserError
from mpt_jax.methods import lora, prefix
from mpt_jax.methods.inside import INSIDE, modules
from mpt_jax.methods.method import part_of, sizes, split
from mpt_jax.methods.table import method_named
from mpt_jax.model import formats
from mpt_jax.model.backbone import backbone_folder, check_weights, fingerprint_of
from mpt_jax.model.changes import LAYERS
from mpt_jax.model.families import family_of
from mpt_jax.model.formats import safetensors
from mpt_jax.model.formats.arrays import LazyArray, in_memory, listed
from mpt_jax.model.formats.files import Folder
from mpt_jax.model.formats.folder_writer import write_folder
from mpt_jax.model.formats.prompts import ADAPTER_WEIGHTS, peft_facts, task_labels
from mpt_jax.paths import absolute
from mpt_jax.regular_files import shown
from mpt_jax.run_folder import read_run_json, require, write_json

KINDS = {"lora": "LORA", "ia3": "IA3", "prefix": "PREFIX_TUNING"}  # of PEFT, by our methods
FOLDED = ("lora", "ia3")  # what weights can hold
BEFORE = "base_model.model."  # PEFT's, before the names of modules
# settings of an adapter that would change its numbers, and the values that do not
PLAIN = {
    "bias": ("none",), "use_dora": (False,), "rank_pattern": ({},), "alpha_pattern": ({},), "modules_to_save": (None, []),
    "fan_in_fan_out": (False,), "layer_replication": (None,), "prefix_projection": (False,), "lora_bias": (False,),
    "trainable_token_indices": (None,), "target_parameters": (None, []), "layers_to_transform": (None,), "use_qalora": (False,),
    "init_lora_weights": (True, False, "gaussian"),  # the others may change the backbone's weights (PiSSA, OLoRA, CorDA)
}  # fmt: skip
# what is read above or below, and what tells nothing of the numbers; any other setting must be off
READ = (
    "peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "target_modules", "feedforward_modules",
    "num_layers", "num_transformer_submodules", "num_virtual_tokens", "token_dim", "num_attention_heads", "encoder_hidden_size",
    "peft_version", "revision", "inference_mode", "auto_mapping", "lora_dropout", "megatron_core", "qalora_group_size", "layers_pattern",
    "exclude_modules", "init_ia3_weights", "ensure_weight_tying", "runtime_config",
)  # fmt: skip


class Adapter(NamedTuple):
    """One run's method: its arrays by path without the axis of groups, and its row and description in run.json."""

    method: str
    arrays: dict[str, np.ndarray]
    row: dict
    run: dict


def of_run(run_dir: str, task: str | None) -> Adapter | None:
    """The best parameters of a run that trained one of KINDS; None for another method. Raises UserError where ``task`` must be named."""
    if read_run_json(run_dir)["method"] not in KINDS:
        return None
    arrays, run = load_trainable(run_dir)
    require(run, run_dir, "runs", "backbone.name", "backbone.fingerprint")
    labels = task_labels(run["runs"])
    if task not in labels and (task is not None or len(labels) > 1):
        named = "no --task is given" if task is None else f"--task {task!r} is not one of its runs"
        raise UserError(f"{run_dir!r}: {named}; give one of {', '.join(labels)}.")
    number = 0 if task is None else labels.index(task)
    parts, row = method_named(run["method"]).parts, run["runs"][number]
    index = {"task": number, "group": row["group"]}
    held = {path: np.asarray(array[index[part_of(path, parts).first_axis]], np.float32) for path, array in arrays.items()}
    return Adapter(run["method"], held, row, run)


def each_layer(config: Any, arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str, np.ndarray]]:
    """(our path of a module, name, array) of every module that changes, one for each layer of a stack."""
    layers = {module.path: module.layers for module in modules(config, "kernel")}
    for path, array in arrays.items():
        if not path.startswith(INSIDE):
            continue
        module, _, name = path.removeprefix(INSIDE).rpartition("/")
        if not layers.get(module):
            yield module, name, array
            continue
        for number, part in enumerate(array, layers[module] - len(array)):
            yield module.replace(f"{LAYERS}/", f"{LAYERS}_{number}/", 1), name, part


def _their_names(config: Any) -> dict[str, str]:
    """Hugging Face's names of modules with a kernel, by our paths."""
    table = [(entry.ours, entry.huggingface) for entry in family_of(config).entries(config) if entry.ours.endswith("/kernel")]
    return {ours.removesuffix("/kernel"): theirs.removesuffix(".weight") for ours, theirs in table}


def write(output: str, adapter: Adapter, backbone: str | None = None) -> list[str]:
    """Writes a PEFT adapter folder. Raises UserError for what PEFT has no place for."""
    config, _, _, name = _backbone_of(adapter, backbone)
    settings, arrays = {"lora": _lora, "ia3": _ia3, "prefix": _prefix}[adapter.method](config, adapter)
    common = {"peft_type": KINDS[adapter.method], "task_type": peft_facts(config)["task_type"], "base_model_name_or_path": name}
    settings = common | {"inference_mode": True} | settings

    def fill(folder: str) -> None:
        write_json(Path(folder) / "adapter_config.json", settings)
        held = {key: in_memory(np.ascontiguousarray(array, np.float32), key) for key, array in arrays.items()}
        safetensors.write(os.path.join(folder, ADAPTER_WEIGHTS[0]), held, {"format": "pt"})

    return write_folder(output, fill)


def _backbone_of(adapter: Adapter, backbone: str | None) -> tuple[Any, dict[str, LazyArray], str | None, str]:
    """Config, arrays and vocabulary of the backbone that a run was trained on, and its name. Raises UserError for another one."""
    known = adapter.run["backbone"]
    name = backbone or known["name"]
    config, arrays, vocabulary = formats.read_backbone(backbone_folder(name, "--backbone"))
    check_weights(known, name, fingerprint_of(arrays), "the run was", "give the run's own backbone by --backbone")
    return config, arrays, vocabulary, name


def _lora(config: Any, adapter: Adapter) -> tuple[dict, dict]:
    theirs, arrays, ranks = _their_names(config), {}, set()
    for path, name, array in each_layer(config, adapter.arrays):
        if name not in ("down", "up"):
            raise UserError("the run trained biases too (LoraSettings.biases), for which PEFT's LoRA of this backbone has no place.")
        arrays[f"{BEFORE}{theirs[path]}.lora_{'A' if name == 'down' else 'B'}.weight"] = array.T
        ranks |= {array.shape[1]} if name == "down" else set()
    (rank,) = ranks
    settings = {"r": rank, "lora_alpha": float(adapter.arrays[lora.SCALE]) * rank, "target_modules": _targets(arrays), "lora_dropout": 0.0,
                "bias": "none", "use_rslora": False, "fan_in_fan_out": False}  # fmt: skip
    return settings, arrays


def _targets(arrays: Mapping[str, Any]) -> list[str]:
    """Last parts of the modules' names, of which a run changes all or none."""
    return sorted({re.sub(r"\.(lora_[AB]\.weight|ia3_l)$", "", key).rpartition(".")[2] for key in arrays})


def _ia3(config: Any, adapter: Adapter) -> tuple[dict, dict]:
    theirs, arrays, fed = _their_names(config), {}, {}
    for path, name, array in each_layer(config, adapter.arrays):
        key = f"{BEFORE}{theirs[path]}.ia3_l"
        arrays[key] = array[None] if name == "scale_in" else array[:, None]
        fed |= {key: array} if name == "scale_in" else {}
    return {"target_modules": _targets(arrays), "feedforward_modules": _targets(fed), "fan_in_fan_out": False}, arrays


def _prefix(config: Any, adapter: Adapter) -> tuple[dict, dict]:
    made = prefix.changes({path: array[None] for path, array in adapter.arrays.items()})
    if set(made) != {"decoder"}:
        raise UserError("PEFT puts prefixes in front of a decoder alone: train with --gin.PrefixSettings.stacks=\"['decoder']\".")
    keys, values = (np.asarray(made["decoder"][name][0]) for name in ("key", "value"))  # (layers, positions, heads, head width)
    layers, length, heads, head_dim = keys.shape
    pairs = np.stack([keys, values], axis=1)
    two = not family_of(config).decoder_only
    if two:  # PEFT takes each layer's four of twice the array: its own two, and two for attention to the encoder, which it drops
        pairs = np.concatenate([pairs, np.zeros_like(pairs)], axis=1)
    flat = np.moveaxis(pairs.reshape(-1, length, heads * head_dim), 1, 0).reshape(length, -1)
    settings = {"num_virtual_tokens": length, "token_dim": heads * head_dim, "num_attention_heads": heads, "prefix_projection": False,
                "num_layers": 2 * layers if two else layers, "num_transformer_submodules": 2 if two else 1,
                "encoder_hidden_size": heads * head_dim}  # fmt: skip
    return settings, {"prompt_embeddings": flat}


def read(source: str, backbone: str) -> Adapter:
    """A PEFT adapter folder by our names, for the backbone that it changes. Raises UserError for what we have no place for."""
    folder = Folder(source)
    settings, where = folder.read_json("adapter_config.json"), folder.where("adapter_config.json")
    methods = [method for method, kind in KINDS.items() if kind == settings.get("peft_type")]
    if not methods:
        raise UserError(f"{where}: peft_type {shown(settings.get('peft_type'))} is not one of {', '.join(KINDS.values())}.")
    odd = next((name for name, plain in PLAIN.items() if name in settings and settings[name] not in plain), None)
    if odd:
        raise UserError(f"{where}: {odd} = {shown(settings[odd])}; only {shown(PLAIN[odd][0])} is read.")
    unknown = next((name for name, value in settings.items() if name not in (*PLAIN, *READ) and value not in (None, False, [], {})), None)
    if unknown:
        raise UserError(f"{where}: {unknown} = {shown(settings[unknown])} is not known here; it could change what the adapter does.")
    if not folder.exists(ADAPTER_WEIGHTS[0]):
        raise UserError(f"{folder.path} has an adapter_config.json but no {ADAPTER_WEIGHTS[0]}.")
    weights, _ = safetensors.read(folder, ADAPTER_WEIGHTS[0])
    config, _, _ = formats.read_backbone(backbone_folder(backbone, "--backbone"))
    count, most = sum(math.prod(lazy.shape) for lazy in weights.values()), config.num_parameters()
    if count > most:
        raise UserError(f"{folder.path} holds {count:,} numbers, and backbone {config.name!r} has {most:,}: it is not an adapter of it.")
    readers = {"lora": _read_lora, "ia3": _read_ia3, "prefix": _read_prefix}
    arrays = readers[methods[0]](config, settings, {key: lazy.load(np.float32) for key, lazy in weights.items()}, where)
    return Adapter(methods[0], arrays, {}, {})


def _number(settings: Mapping[str, Any], name: str, where: str, least: float = 1) -> float:
    value = settings.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < 2**31:
        raise UserError(f"{where}: {name} = {shown(value)}; it takes a number from {least} on.")
    return value


def _read_lora(config: Any, settings: Mapping[str, Any], weights: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    rank, alpha = _number(settings, "r", where), _number(settings, "lora_alpha", where, 0)
    found = {}
    for key, array in weights.items():
        module, dot, name = key.removeprefix(BEFORE).rpartition(".lora_")
        if not dot or name not in ("A.weight", "B.weight") or array.ndim != 2:
            raise UserError(f"{where}: its weights hold {key!r} {array.shape}, which is not a factor of LoRA.")
        found[module, "down" if name[0] == "A" else "up"] = array.T
    for module in dict.fromkeys(module for module, _ in found):
        ranks = [found[module, name].shape[axis] if (module, name) in found else 0 for name, axis in (("down", 1), ("up", 0))]
        if ranks != [rank, rank]:
            raise UserError(f"{where}: {shown(module)} has factors of ranks {ranks[0]} (A) and {ranks[1]} (B); r = {rank}.")
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    return {lora.SCALE: np.float32(scale)} | _stacked(config, found, where)


def _read_ia3(config: Any, settings: Mapping[str, Any], weights: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    found = {}
    for key, array in weights.items():
        module, dot, _ = key.removeprefix(BEFORE).rpartition(".ia3_l")
        if not dot or array.ndim != 2 or 1 not in array.shape:
            raise UserError(f"{where}: its weights hold {key!r} {array.shape}, which is not a vector of (IA)3.")
        found[module, "scale_in" if array.shape[0] == 1 else "scale_out"] = array.reshape(-1)
    return _stacked(config, found, where)


def _stacked(config: Any, found: Mapping[tuple[str, str], np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Arrays of layers together by our paths. Raises UserError for modules or shapes that the backbone lacks, or a stack with gaps."""
    ours, left, arrays = {theirs: path for path, theirs in _their_names(config).items()}, dict(found), {}
    by_path = {(ours[module], name): left.pop((module, name)) for module, name in found if module in ours}
    if left:
        raise UserError(f"{where}: modules {listed(module for module, _ in left)} are not in backbone {config.name!r}.")
    names = sorted({name for _, name in by_path})
    for module in modules(config, "kernel"):
        paths = [module.path.replace(f"{LAYERS}/", f"{LAYERS}_{n}/", 1) for n in range(module.layers)] or [module.path]
        for name in names:
            there = [by_path[path, name] for path in paths if (path, name) in by_path]
            if not there:
                continue
            if len(there) < len(paths) or len({array.shape for array in there}) > 1 or not _fits(there[0], name, module.shape):
                has = f"{len(there)} of {len(paths)} layers, of shape {there[0].shape}"
                raise UserError(f"{where}: {module.path} has {has}; it takes all layers, of one shape that fits.")
            arrays[f"{INSIDE}{module.path}/{name}"] = np.stack(there) if module.layers else there[0]
    return arrays


def _fits(array: np.ndarray, name: str, shape: tuple[int, ...]) -> bool:
    width, out = shape
    return {"down": array.shape[:1] == (width,), "up": array.shape[-1:] == (out,), "scale_in": array.shape == (width,)}.get(
        name, array.shape == (out,)
    )


def _read_prefix(config: Any, settings: Mapping[str, Any], weights: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    flat, shape = weights.get("prompt_embeddings"), prefix.shapes(config, ("decoder",))["decoder"]
    layers, submodules = int(_number(settings, "num_layers", where)), int(_number(settings, "num_transformer_submodules", where))
    width = shape.heads * shape.head_dim
    if flat is None or len(weights) > 1 or flat.ndim != 2 or flat.shape[1] != 2 * layers * width or submodules not in (1, 2):
        wanted = f"prompt_embeddings (length, {2 * layers * width})"
        raise UserError(f"{where}: its weights hold {listed(weights)}; a prefix of {layers} layers is {wanted}.")
    pairs = np.moveaxis(flat.reshape(len(flat), 2 * layers, shape.heads, shape.head_dim), 1, 0)
    pairs = np.concatenate([pairs] * submodules)  # as PEFT does, and takes 2 or 4 for each layer, of which the first two are its own
    each = pairs.reshape(-1, 2 * submodules, *pairs.shape[1:])
    if len(each) < shape.layers:
        raise UserError(f"{where}: num_layers = {layers} gives {len(each)} layers a prefix; backbone {config.name!r} has {shape.layers}.")
    return {f"{INSIDE}decoder/{name}": each[: shape.layers, number] for number, name in enumerate(("key", "value"))}


def write_run(output: str, adapter: Adapter, task: str, backbone: str) -> list[str]:
    """A run folder with these parameters, which eval, infer and convert read."""
    name = backbone_folder(backbone, "--backbone")
    config, lazies, _ = formats.read_backbone(name)
    method = method_named(adapter.method)
    length = next((array.shape[1] for path, array in adapter.arrays.items() if path == f"{INSIDE}decoder/key"), 1)
    settings = Settings(TrainSettings("teacher", output, adapter.method), BackboneSettings(absolute(name)))
    settings = settings._replace(prompt=dataclasses.replace(settings.prompt, length=length, transfer="none"))
    trainable, kept = split({path: np.asarray(array, np.float32)[None] for path, array in adapter.arrays.items()}, method.parts)
    counted = sizes(trainable, method.parts)
    row = {"task": task, "seed": settings.train.seed_list[0], "group": 0}
    total = config.num_parameters()
    run = {
        "stage": "teacher", "method": adapter.method, "tasks": [task], "runs": [row], "converted": True,
        "settings": json.loads(json.dumps(settings.describe())),
        "parameters": {"trainable": counted, "per_task": counted, "backbone": total, "fraction_of_backbone": counted / total},
        "backbone": {"name": settings.backbone.path, "fingerprint": fingerprint_of(lazies), "parameters": total, **peft_facts(config)},
    }  # fmt: skip

    def fill(folder: str) -> None:
        write_json(Path(folder) / "run.json", run)
        checkpoints = Checkpoints(folder, runs=run["runs"], kept=kept)
        checkpoints.save(0, {"step": np.asarray(0), "trainable": trainable, "opt_state": ()}, None, {"step": 0, "has_best": False})
        checkpoints.close()

    return write_folder(output, fill)


def folded(adapter: Adapter, backbone: str | None) -> tuple[Any, dict[str, LazyArray], str | None]:
    """The run's backbone (config, arrays, vocabulary) with LoRA's products added to its kernels, or (IA)3's scales multiplied in.

    Raises UserError for methods that weights cannot hold, and for another backbone than the run's.
    """
    if adapter.method not in FOLDED:
        raise no_place(f"what METHOD = {adapter.method!r} trains")
    if any(path.endswith("/bias") for path in adapter.arrays):
        raise no_place("biases")
    config, arrays, vocabulary, _ = _backbone_of(adapter, backbone)
    found: dict[str, dict[str, np.ndarray]] = {}
    for path, part, array in each_layer(config, adapter.arrays):
        found.setdefault(path, {})[part] = array
    folded_in, scale = dict(arrays), float(adapter.arrays.get(lora.SCALE, 1))
    for path, change in found.items():
        folded_in[f"{path}/kernel"] = _changed(arrays[f"{path}/kernel"], change, scale)
        if "scale_out" in change and f"{path}/bias" in arrays:
            folded_in[f"{path}/bias"] = _changed(arrays[f"{path}/bias"], {"scale_out": change["scale_out"]}, scale)
    return config, folded_in, vocabulary


def _changed(array: LazyArray, change: Mapping[str, np.ndarray], scale: float) -> LazyArray:
    """A kernel (in, out) or a bias (out,) with its change, made as it is read, in the type that it has in the file."""

    def fill(out: np.ndarray, index: tuple[slice, ...]) -> None:
        part = array.read(np.float32, index)
        if "down" in change:
            part += scale * (change["down"][index[0]] @ change["up"][:, index[1]])
        if "scale_in" in change:
            part *= change["scale_in"][index[0], None]
        if "scale_out" in change:
            part *= change["scale_out"][index[-1]]
        out[...] = part

    return dataclasses.replace(array, fill=fill, origin=None, beside=array.beside + 8 * math.prod(array.shape))


def no_place(what: str) -> UserError:
    """The error where something is to be folded into weights that cannot hold it."""
    return UserError(f"a backbone has no place for {what}; {' and '.join(FOLDED)} can be folded into one.")


def is_adapter(source: str) -> bool:
    """Whether a folder holds a PEFT adapter of one of KINDS."""
    folder = Folder(source)
    return folder.exists("adapter_config.json") and folder.read_json("adapter_config.json").get("peft_type") in KINDS.values()


