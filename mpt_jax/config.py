"""Settings: frozen dataclasses, checked when they are made, with unit and source for each field.

"ours" marks a default that no paper or code base gives. Sources: MPT = arXiv 2303.02861; ATTEMPT = AkariAsai/ATTEMPT;
PT-JAX = google-research/prompt-tuning; T5X = google-research/t5x; PEFT = huggingface/peft.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import NamedTuple

from mpt_jax.errors import UserError

ATTENTIONS = ("auto", "einsum", "fused")  # model/attention.py
MOST_BEAMS = 64  # each holds a cache of its own
STAGES = ("teacher", "source", "target", "fewshot", "finetune", "pretrain")
# EvalSettings.method: how a task's rows are answered
ANSWERS = {
    "decode": "greedily, token by token; an answer that is no label is wrong",
    "rank": "the label that greedy decoding gives if it may only write labels: what 'decode' gives wherever it writes a label",
    "rank_probability": "the label of the highest total log-probability, which can be another one",
}


def check_types(settings) -> None:
    """Raises UserError if a field of a settings dataclass holds a value of another type than its annotation (gin checks none)."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        allowed = tuple(typing.get_origin(option) or option for option in options)
        if float in allowed:
            allowed += (int,)
        wrong_bool = isinstance(value, bool) and bool not in allowed
        if wrong_bool or not isinstance(value, allowed):
            name = f"{type(settings).__name__}.{field.name}"
            raise UserError(f"{name} = {value!r} is of type {type(value).__name__}; it takes {hint}. Change the gin binding.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises UserError if value is none of choices."""
    if value not in choices:
        raise UserError(f"{name} = {value!r} is not one of {', '.join(map(repr, choices))}.")


def check_folder(name: str, value: str) -> None:
    """Raises UserError for a folder that was not given."""
    if not value:
        raise UserError(f"{name} is empty; give --gin.{name}=\"'folder'\".")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raises UserError unless low <= value <= high."""
    if not low <= value <= high:
        raise UserError(f"{name} = {value!r} is outside {low} .. {high}.")


@dataclasses.dataclass(frozen=True)
class Computation:
    """How a network is computed, whatever its shape."""

    dtype: str = "float32"  # of activations and frozen weights: 'bfloat16' on TPU and GPU
    remat: str = "none"  # training: 'none' keeps all activations for the backward pass, 'layers' only those between layers
    attention: str = "auto"  # 'einsum' | 'fused': logits never leave a TPU's fast memory | 'auto': 'fused' where it fits [ours]
    dropout_rate: float = 0.0  # PT-JAX trains prompts without dropout

    def __post_init__(self):
        check_types(self)
        check_choice("Computation.dtype (DTYPE)", self.dtype, ("float32", "bfloat16"))
        check_choice("Computation.remat (REMAT)", self.remat, ("none", "layers"))
        check_choice("Computation.attention (ATTENTION)", self.attention, ATTENTIONS)
        check_range("Computation.dropout_rate (DROPOUT_RATE)", self.dropout_rate, 0.0, 0.99)


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """Which frozen network, and how it is computed."""

    path: str = "nano"  # BACKBONE: a shipped name or a folder
    vocabulary: str = ""  # for a backbone that brings none: a SentencePiece model, a tokenizer.json, or 'bytes'
    dtype: str = "float32"  # DTYPE: of computation and of the frozen weights
    remat: str = "none"  # REMAT: 'none' | 'layers': less memory, a second forward pass of each layer [ours]
    attention: str = "auto"  # ATTENTION: 'auto' | 'einsum' | 'fused', see Computation; 'auto' is 'einsum' where the backbone is trained

    def __post_init__(self):
        check_types(self)
        Computation(self.dtype, self.remat, self.attention)

    @property
    def computation(self) -> Computation:
        """As answers are computed: nothing is kept for a backward pass."""
        return Computation(self.dtype, "none", self.attention)


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    """The prompt bank and where it starts."""

    length: int = 100  # P, vectors [MPT 4; ATTEMPT, DPT options]
    rank: int = 1  # R of the task factors [MPT 3.2]; 0 trains plain prompts without factors
    init: str = "vocabulary"  # 'vocabulary' | 'uniform' | 'text' | 'file' [ATTEMPT modeling_t5.py:1759]
    init_vocabulary_rows: int = 5000  # sampled from the first so many embeddings [ATTEMPT]
    init_uniform_scale: float = 0.5  # U(-s, s) [PT-JAX, ATTEMPT]
    init_text: str = ""  # for init = 'text': its token embeddings, repeated to the length [PT-JAX from_string]
    init_file: str = ""  # for init = 'file': one prompt (P, D) in .npy, .npz, a PEFT adapter or a T5X checkpoint
    # 'ones' | 'normal'. 'ones': P_k = P* at the start, so that gradients to P* have full scale [ours; PEFT: N(0, 0.02)]
    factor_init: str = "ones"
    factor_init_scale: float = 0.02  # spread of 'normal', and of what breaks the symmetry of ranks >= 2 in 'ones' [PEFT]
    transfer: str = "mean"  # target stage: 'mean' of source factors [MPT 3.2] | 'task' | 'shared' | 'none'
    transfer_task: str = ""  # the source task for transfer = 'task'
    shared_over_targets: bool = False  # True: all targets of a seed tune one P* (MPT's multi-target row, 10.5K per task)

    def __post_init__(self):
        check_types(self)
        check_range("PromptSettings.length (PROMPT_LENGTH)", self.length, 1)
        check_range("PromptSettings.rank", self.rank, 0)
        check_choice("PromptSettings.init", self.init, ("vocabulary", "uniform", "text", "file"))
        check_choice("PromptSettings.factor_init", self.factor_init, ("ones", "normal"))
        check_choice("PromptSettings.transfer", self.transfer, ("mean", "task", "shared", "none"))
        if self.transfer == "task" and not self.transfer_task:
            raise UserError("PromptSettings.transfer = 'task' needs PromptSettings.transfer_task = '<source task>'.")


@dataclasses.dataclass(frozen=True)
class DistillationSettings:
    """What the source stage takes from its teachers: L = L_task + weight * (L_logits + L_hidden) [MPT 3.2]."""

    weight: float = 0.9  # lambda [MPT, low confidence: PAPER leaves it open]; 0 trains without teachers
    temperature: float = 1.0  # of teacher and student [MPT has one, its value is not known: ours]
    logits: bool = True  # KL(teacher || student) over the target tokens
    hidden: str = "last"  # 'none' | 'last' (encoder and decoder outputs) | 'all' (every layer) [MPT: both halves; which layers: ours]
    hidden_positions: str = "inputs"  # 'inputs' | 'all' encoder positions, prompt included [ours]
    # 'beside' runs the teacher in every step, exactly | 'cached' once for each row, before training, and keeps its outputs on disk
    teacher: str = "beside"
    cached_top: int = 64  # 'cached': most likely tokens of a target position that are kept, all others as one; 0 keeps all [ours]
    cached_dtype: str = "float16"  # 'cached': of the hidden states kept, 'float16' | 'float32' [ours]

    def __post_init__(self):
        check_types(self)
        check_choice("DistillationSettings.teacher", self.teacher, ("beside", "cached"))
        check_choice("DistillationSettings.cached_dtype", self.cached_dtype, ("float16", "float32"))
        check_range("DistillationSettings.cached_top", self.cached_top, 0)
        if self.teacher == "cached" and self.hidden == "all":
            message = "DistillationSettings.teacher = 'cached' keeps the last hidden states only, DistillationSettings.hidden = 'all'"
            raise UserError(f"{message} compares every layer's: set hidden to 'last', or teacher to 'beside'.")
        check_range("DistillationSettings.weight", self.weight, 0.0)
        check_range("DistillationSettings.temperature", self.temperature, 1e-3)
        check_choice("DistillationSettings.hidden", self.hidden, ("none", "last", "all"))
        check_choice("DistillationSettings.hidden_positions", self.hidden_positions, ("inputs", "all"))


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """One optimiser over the trainable tree, with a learning rate for each of its groups."""

    name: str = "adamw"  # 'adamw' [DPT] | 'adafactor' [PT-JAX]
    learning_rate: float | list | tuple = 0.3  # of P*, plain prompts, or all weights; a list trains a run for each [MPT]
    factor_learning_rate: float | list | tuple = 0.3  # of the factors: 0.3 source, 0.4 target [MPT, low confidence]
    schedule: str = "linear"  # 'linear' decay to 0 [DPT] | 'constant' [PT-JAX], both after the warm-up
    warmup_steps: int = 500  # steps [ATTEMPT]; never more than a tenth of the run [DPT]
    weight_decay: float = 1e-5  # [DPT, PT-JAX]
    clip_norm: float = 1.0  # gradient norm of a run [DPT]; 0 turns clipping off
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self):
        check_types(self)
        check_choice("OptimizerSettings.name", self.name, ("adamw", "adafactor"))
        check_choice("OptimizerSettings.schedule", self.schedule, ("linear", "constant"))
        for name in ("learning_rate", "factor_learning_rate"):
            value = getattr(self, name)
            for rate in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < 100:
                    raise UserError(f"OptimizerSettings.{name} = {value!r}: a learning rate is a number in 0 .. 100.")
        check_range("OptimizerSettings.warmup_steps", self.warmup_steps, 0)
        check_range("OptimizerSettings.clip_norm", self.clip_norm, 0.0)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Rows, their lengths and how they are drawn."""

    batch_size: int = 32  # examples a run and step [DPT, ATTEMPT]
    micro_batch_size: int = 8  # rows padded together; the optimiser sees the whole batch in any case [ours]
    cue: str = ""  # CUE: text between input and target of a decoder-only backbone, for example '\nAnswer:'
    # tokens kept of inputs and targets, EOS included [ATTEMPT, DPT]
    feature_lengths: dict = dataclasses.field(default_factory=lambda: {"inputs": 256, "targets": 128})
    input_buckets: list | tuple = ()  # padded lengths below the limit; () = those of data/batches.py. Fewer compile less and pad more
    target_buckets: list | tuple = ()
    mixing: str = "stochastic"  # 'stochastic' [MPT, DPT loader] | 'proportional' | 'equal'
    mixing_cap: int = 2**18  # rows of a task that count in mixing [DPT]
    k_shot: int = 0  # training rows of a few-shot run; 0 takes all
    k_per_class: bool = False  # False: k rows in all, balanced over classes [DePT train.py]; True: k of each class
    cache_dir: str = ""  # token caches; '' = ~/.cache/mpt_jax, or the environment's MPT_CACHE_DIR
    prefetch: int = 2  # batches made ahead

    def __post_init__(self):
        check_types(self)
        check_choice("DataSettings.mixing", self.mixing, ("stochastic", "proportional", "equal"))
        if set(self.feature_lengths) != {"inputs", "targets"}:
            message = f"DataSettings.feature_lengths (TASK_FEATURE_LENGTHS) = {self.feature_lengths!r}"
            raise UserError(f"{message}; it takes {{'inputs': tokens, 'targets': tokens}}.")
        for name, low in (("batch_size", 1), ("micro_batch_size", 1), ("mixing_cap", 1), ("k_shot", 0), ("prefetch", 1)):
            check_range(f"DataSettings.{name}", getattr(self, name), low)
        for feature, length in self.feature_lengths.items():
            if not isinstance(length, int) or length < 2:
                raise UserError(f"DataSettings.feature_lengths[{feature!r}] = {length!r}; it takes a number of tokens >= 2.")

    @property
    def input_length(self) -> int:
        """Tokens kept of an input."""
        return self.feature_lengths["inputs"]

    @property
    def target_length(self) -> int:
        """Tokens kept of a target."""
        return self.feature_lengths["targets"]


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """How many parts the devices of all processes are arranged in (mpt_jax/sharding.py); the product is their number [ours]."""

    data: int = 0  # MESH_DATA: copies of the backbone that share a batch; 0 = the devices that are left
    fsdp: int = 1  # MESH_FSDP: they share a batch and hold a part of each frozen weight, gathered where it is needed
    tensor: int = 1  # MESH_TENSOR: they share each layer's heads, feed-forward width and vocabulary

    def __post_init__(self):
        check_types(self)
        for name, low in (("data", 0), ("fsdp", 1), ("tensor", 1)):
            check_range(f"MeshSettings.{name} (MESH_{name.upper()})", getattr(self, name), low)


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Which tasks: names of tasks or mixtures, and the module that registers them."""

    names: list | tuple = ()  # TASKS
    mixture_or_task_name: str = ""  # one name in place of the list, as in T5X
    module: str = ""  # MIXTURE_OR_TASK_MODULE: a dotted name, or a path that ends in .py
    data_dir: str = ""  # TASK_DATA_DIR: published files of the paper's tasks; '' = the environment's MPT_TASK_DATA
    download: bool = False  # True: TFDS may download what is not there
    label_targets: str = "words"  # of the paper's tasks: 'words' [T5] | 'indices' [ATTEMPT]
    as_published: bool = False  # True: the paper's tasks as ATTEMPT made them, defects included (NAME:published)

    def __post_init__(self):
        check_types(self)
        check_choice("TaskSettings.label_targets", self.label_targets, ("words", "indices"))
        if self.names and self.mixture_or_task_name:
            both = f"TASKS = {list(self.names)} and MIXTURE_OR_TASK_NAME = {self.mixture_or_task_name!r}"
            raise UserError(f"both {both} are given; keep one.")
        if isinstance(self.names, str) or not all(isinstance(name, str) for name in self.names):
            raise UserError(f"TASKS = {self.names!r}; it takes a list of names.")

    @property
    def chosen(self) -> list[str]:
        """The names given, either way."""
        return list(self.names) or ([self.mixture_or_task_name] if self.mixture_or_task_name else [])


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """One training run, apart from the settings above."""

    stage: str
    model_dir: str = ""  # MODEL_DIR: the run folder
    method: str = "prompt"  # METHOD: a row of methods/table.py; stages that train the backbone have their own
    teacher_dir: str = ""
    source_dir: str = ""
    train_steps: int = 1000
    seeds: int | list | tuple = 42  # a list trains a run for each in one program; 42 [ATTEMPT data_seed]
    eval_steps: int = 0  # steps between scores on the dev split; 0 = a tenth of the run [ours]
    eval_rows: int = 1000  # dev rows scored in training at most; 0 = all [ATTEMPT's carved dev splits hold 1,000]
    eval_split: str = "validation"
    checkpoint_steps: int = 0  # steps between checkpoints; 0 = as eval_steps
    log_steps: int = 10  # steps between lines of metrics
    skip_damaged_checkpoints: bool = False  # True: a damaged checkpoint is put aside and the one before it continues
    score_tasks: bool = True  # score the dev split and keep the best bank of each run
    # scorings without a better one after which a group of runs draws no more rows; 0 = never [DPT stops after 10]
    patience: int = 0
    encoder_teaching: float = 0.0  # pretraining: weight of the loss to sentence vectors in the rows [ours]

    def __post_init__(self):
        check_types(self)
        check_choice("TrainSettings.stage", self.stage, STAGES)
        zero_or_more = ("eval_steps", "eval_rows", "checkpoint_steps", "patience")
        for name, low in (("train_steps", 1), ("log_steps", 1), *((name, 0) for name in zero_or_more)):
            check_range(f"TrainSettings.{name}", getattr(self, name), low)
        if self.patience and not self.score_tasks:
            raise UserError(f"TrainSettings.patience = {self.patience} needs dev scores: set TrainSettings.score_tasks = True.")

    @property
    def trains_backbone(self) -> bool:
        """Whether all weights are trained, and no prompt."""
        return self.stage in ("finetune", "pretrain")

    @property
    def steps_between_scores(self) -> int:
        """Steps between scores on the dev split."""
        return self.eval_steps or max(self.train_steps // 10, 1)

    @property
    def steps_between_checkpoints(self) -> int:
        """Steps between checkpoints."""
        return self.checkpoint_steps or self.steps_between_scores

    @property
    def seed_list(self) -> tuple[int, ...]:
        """The seeds, one for each repetition."""
        return tuple(self.seeds) if isinstance(self.seeds, list | tuple) else (self.seeds,)


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """Scoring and prediction from a run folder."""

    model_dir: str = ""  # MODEL_DIR: the run folder
    split: str = "validation"
    checkpoint: str = "best"  # 'best' on the dev split in training | 'last'
    batch_size: int = 64  # rows decoded together [ours]
    max_rows: int = 0  # rows of the split at most; 0 = all
    method: str = "decode"  # a row of ANSWERS; tasks without labels are decoded by any
    # how answers are decoded, unless labels are ranked: greedily, or
    beams: int = 1  # BEAMS: beam search with so many hypotheses (infer/beam.py)
    length_penalty: float = 1.0  # LENGTH_PENALTY: of beam search; above 0 favours longer answers [transformers' default]
    temperature: float = 0.0  # TEMPERATURE: above 0 draws each token, the flatter the higher; 0 takes the most likely one
    top_p: float = 1.0  # TOP_P: drawn from the most likely tokens that have this probability together
    sample_seed: int = 0  # SAMPLE_SEED: the same seed draws the same answer to the same input of a task

    def __post_init__(self):
        check_types(self)
        check_choice("EvalSettings.method", self.method, tuple(ANSWERS))
        check_choice("EvalSettings.checkpoint", self.checkpoint, ("best", "last"))
        check_range("EvalSettings.batch_size (EVAL_BATCH_SIZE)", self.batch_size, 1)
        check_range("EvalSettings.max_rows", self.max_rows, 0)
        check_range("EvalSettings.beams (BEAMS)", self.beams, 1, MOST_BEAMS)
        check_range("EvalSettings.length_penalty (LENGTH_PENALTY)", self.length_penalty, -100.0, 100.0)
        check_range("EvalSettings.temperature (TEMPERATURE)", self.temperature, 0.0, 1000.0)
        check_range("EvalSettings.top_p (TOP_P)", self.top_p, 1e-6, 1.0)
        check_range("EvalSettings.sample_seed (SAMPLE_SEED)", self.sample_seed, 0, 2**32 - 1)
        if self.beams > 1 and self.temperature:
            raise UserError(f"BEAMS = {self.beams} and TEMPERATURE = {self.temperature}: beam search draws nothing; set one of them.")
        if self.top_p < 1 and not self.temperature:
            raise UserError(f"TOP_P = {self.top_p} cuts what is drawn, and TEMPERATURE = 0 draws nothing; set TEMPERATURE = 1.0.")


@dataclasses.dataclass(frozen=True)
class CompileSettings:
    """What the command compile compiles for."""

    topology: str = ""  # TOPOLOGY: a TPU slice, 'v5e:4x4' or 'v5p:2x2x2', pretend CPU devices, 'cpu:8', or 'here'

    def __post_init__(self):
        check_types(self)
        if not self.topology:
            raise UserError("CompileSettings.topology (TOPOLOGY) is empty; give --gin.TOPOLOGY=\"'v5e:4x4'\".")


class Settings(NamedTuple):
    """Everything a run is made from."""

    train: TrainSettings
    backbone: BackboneSettings = BackboneSettings()
    prompt: PromptSettings = PromptSettings()
    distillation: DistillationSettings = DistillationSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    data: DataSettings = DataSettings()
    mesh: MeshSettings = MeshSettings()

    def describe(self) -> dict:
        """As plain JSON values."""
        return {name: dataclasses.asdict(value) for name, value in self._asdict().items()}

    def computation(self) -> Computation:
        """How training computes the network; where the backbone is trained, attention gives its bias a gradient."""
        backbone, trains = self.backbone, self.train.trains_backbone
        if trains and backbone.attention == "fused":
            message = f"ATTENTION = 'fused' gives the position bias no gradient, and stage {self.train.stage!r} trains it"
            raise UserError(f"BackboneSettings.attention: {message}; set 'einsum'.")
        return Computation(backbone.dtype, backbone.remat, "einsum" if trains else backbone.attention)
