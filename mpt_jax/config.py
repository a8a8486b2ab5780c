"""Settings: frozen dataclasses, checked when they are made, with unit and source for each field.

"ours" marks a default that no paper or code base gives. Sources: MPT = arXiv 2303.02861; ATTEMPT = AkariAsai/ATTEMPT;
PT-JAX = google-research/prompt-tuning; T5X = google-research/t5x; PEFT = huggingface/peft.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from mpt_jax import bindings, buckets, checks, paths
from mpt_jax.computation import Computation
from mpt_jax.errors import UserError

MOST_BEAMS = 64  # each holds a cache of its own
LENGTHS = {"inputs": 256, "targets": 128}  # TASK_FEATURE_LENGTHS where it is not given [ATTEMPT, DPT]
WEIGHT_STAGES = ("finetune", "pretrain")  # they train the backbone, and no prompt
TARGET_STAGES = ("target", "fewshot")  # they start from SOURCE_DIR
STAGES = ("teacher", "source", *TARGET_STAGES, *WEIGHT_STAGES)
MIXINGS = ("stochastic", "proportional", "equal")  # data/sampler.py
# EvalSettings.method: how a task's rows are answered
ANSWERS = {
    "decode": "greedily, token by token; an answer that is not a label is wrong",
    "rank": "the label that greedy decoding gives if it may only write labels: what 'decode' gives wherever it writes a label",
    "rank_probability": "the label of the highest total log-probability, which can be another one",
}
# the most of each: far beyond what is of use, and still refused before anything of that size is made [ours]
MOST_STEPS = 100_000_000
MOST_LENGTH = 10_000  # prompt vectors
MOST_RANK = 1_000
MOST_SEED = 2**32 - 1
MOST_ROWS, MOST_TOKENS = 2**16, 2**17  # of a batch; of an input or a target
MOST_AHEAD = 1000  # batches made ahead


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """Which frozen network, and how it is computed."""

    path: str = "nano"  # BACKBONE: a shipped name or a folder
    vocabulary: str = ""  # for a backbone that brings none: a SentencePiece model, a tokenizer.json, or 'bytes'
    dtype: str = "float32"  # DTYPE: of computation and of the frozen weights
    remat: str = "none"  # REMAT: 'none' | 'layers': less memory, a second forward pass of each layer [ours]
    attention: str = "auto"  # ATTENTION: 'auto' | 'einsum' | 'fused' (TPU; NVIDIA GPU in bfloat16); where the backbone is trained, 'einsum'
    int8: bool = False  # INT8: frozen matrices as int8, half of bfloat16's memory; products stay in the dtype (model/int8.py)

    def __post_init__(self):
        checks.check_types(self)
        checks.check_folder("BACKBONE", self.path)
        checks.set_paths(self, {"path": "BACKBONE"}, buckets.SCHEMES)
        checks.set_paths(self, {"vocabulary": "VOCABULARY"})
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
    # for init = 'text': its token embeddings, repeated to the length [PT-JAX from_string]; {task: text} gives each task its own
    init_text: bindings.WordsOfTasks = ""
    init_file: str = ""  # for init = 'file': one prompt (P, D) in .npy, .npz, a PEFT adapter or a T5X checkpoint
    # 'ones' | 'normal'. 'ones': P_k = P* at the start, so that gradients to P* have full scale [ours; PEFT: N(0, 0.02)]
    factor_init: str = "ones"
    factor_init_scale: float = 0.02  # spread of 'normal', and of what breaks the symmetry of ranks >= 2 in 'ones' [PEFT]
    transfer: str = "mean"  # target stage: 'mean' of source factors [MPT 3.2] | 'task' | 'shared' | 'none'
    # for transfer = 'task': the source task, or several, whose factors' mean is taken; {task: those} gives each target its own
    transfer_task: str | list | tuple | dict = ""
    shared_over_targets: bool = False  # True: all targets of a seed tune one P* (MPT's multi-target row, 10.5K per task)

    def __post_init__(self):
        checks.check_types(self)
        checks.set_paths(self, {"init_file": "PromptSettings.init_file"}, buckets.READ_IN_PLACE)
        checks.check_range("PromptSettings.length (PROMPT_LENGTH)", self.length, 1, MOST_LENGTH)
        checks.check_range("PromptSettings.rank (PROMPT_RANK)", self.rank, 0, MOST_RANK)
        checks.check_range("PromptSettings.init_vocabulary_rows", self.init_vocabulary_rows, 1)
        for name in ("init_uniform_scale", "factor_init_scale"):
            checks.check_range(f"PromptSettings.{name}", getattr(self, name), 0.0, 1e6)
        checks.check_choice("PromptSettings.init", self.init, ("vocabulary", "uniform", "text", "file"))
        checks.check_choice("PromptSettings.factor_init", self.factor_init, ("ones", "normal"))
        checks.check_choice("PromptSettings.transfer", self.transfer, ("mean", "task", "shared", "none"))
        if self.transfer == "task" and not self.transfer_task:
            raise UserError("PromptSettings.transfer = 'task' needs PromptSettings.transfer_task = '<source task>'.")
        checks.check_start(self.init, {"text": self.init_text, "file": self.init_file})
        checks.check_texts("PromptSettings.transfer_task", self.transfer_task, lists=True)

    @property
    def init_texts(self) -> tuple[str, ...]:
        """All texts of ``init_text``."""
        return tuple(self.init_text.values()) if isinstance(self.init_text, dict) else (self.init_text,)


@dataclasses.dataclass(frozen=True)
class DistillationSettings:
    """What the source stage takes from its teachers: L = L_task + weight * (L_logits + L_hidden) [MPT 3.2]."""

    weight: float = 0.9  # lambda [MPT, low confidence: PAPER leaves it open]; 0 trains without teachers
    temperature: float = 1.0  # of teacher and student [MPT has one, its value is not known: ours]
    logits: bool = True  # KL(teacher || student) over the target tokens
    hidden: str = "last"  # 'none' | 'last' (encoder and decoder outputs) | 'all' (every layer) [MPT: both halves; which layers: ours]
    hidden_positions: str = "inputs"  # 'inputs' | 'all' encoder positions, prompt included [ours]
    # 'beside' runs the teacher in every step, exactly | 'cached' once for each row, before training, and keeps its outputs on disk
    teacher_mode: str = "beside"
    cached_top: int = 64  # 'cached': most likely tokens of a target position that are kept, all others as one; 0 keeps all [ours]
    cached_dtype: str = "float16"  # 'cached': of the hidden states kept, 'float16' | 'float32' [ours]

    def __post_init__(self):
        checks.check_types(self)
        checks.check_choice("DistillationSettings.teacher_mode", self.teacher_mode, ("beside", "cached"))
        checks.check_choice("DistillationSettings.cached_dtype", self.cached_dtype, ("float16", "float32"))
        checks.check_range("DistillationSettings.cached_top", self.cached_top, 0, 10_000_000)
        if self.teacher_mode == "cached" and self.hidden == "all":
            message = "DistillationSettings.teacher_mode = 'cached' keeps the last hidden states only, DistillationSettings.hidden = 'all'"
            raise UserError(f"{message} compares every layer's: set hidden to 'last', or teacher_mode to 'beside'.")
        checks.check_range("DistillationSettings.weight", self.weight, 0.0)
        checks.check_range("DistillationSettings.temperature", self.temperature, 1e-3)
        checks.check_choice("DistillationSettings.hidden", self.hidden, ("none", "last", "all"))
        checks.check_choice("DistillationSettings.hidden_positions", self.hidden_positions, ("inputs", "all"))


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """One optimiser over the trainable tree, with a learning rate for each of its groups; None: the method's own (methods/method.py)."""

    name: str = "adamw"  # 'adamw' [DPT] | 'adafactor' [PT-JAX]
    learning_rate: float | list | tuple | None = None  # of P*, plain prompts, or all weights; a list trains a run for each [MPT]
    factor_learning_rate: float | list | tuple | None = None  # of the factors
    schedule: str = "linear"  # 'linear' decay to 0 [DPT] | 'constant' [PT-JAX], both after the warm-up
    warmup_steps: int = 500  # steps [ATTEMPT]; never more than a tenth of the run [DPT]
    weight_decay: float = 1e-5  # [DPT, PT-JAX]
    clip_norm: float = 1.0  # gradient norm of a run [DPT]; 0 turns clipping off
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self):
        checks.check_types(self)
        checks.check_choice("OptimizerSettings.name", self.name, ("adamw", "adafactor"))
        checks.check_choice("OptimizerSettings.schedule", self.schedule, ("linear", "constant"))
        for name in ("learning_rate", "factor_learning_rate"):
            value = getattr(self, name)
            if value is None:
                continue
            given = value if isinstance(value, list | tuple) else (value,)
            if not given:
                raise UserError(f"OptimizerSettings.{name} = {value!r}: it takes a number, or a list of at least one.")
            for rate in given:
                if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < 100:
                    raise UserError(f"OptimizerSettings.{name} = {value!r}: a learning rate is a number in 0 .. 100.")
            checks.check_different(f"OptimizerSettings.{name}", given)
        checks.check_range("OptimizerSettings.warmup_steps", self.warmup_steps, 0, MOST_STEPS)
        checks.check_range("OptimizerSettings.clip_norm", self.clip_norm, 0.0)
        checks.check_range("OptimizerSettings.weight_decay", self.weight_decay, 0.0)
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"OptimizerSettings.{name} = {getattr(self, name)!r} is outside 0 .. 1, 1 not included.")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Rows, their lengths and how they are drawn."""

    batch_size: int = 32  # examples per run and step [DPT, ATTEMPT]
    micro_batch_size: int = 8  # rows padded together; the optimiser sees the whole batch in any case [ours]
    smallest_micro_batch: int = 0  # long rows go in smaller ones, of half that size and so on down to this; 0 = all are alike [ours]
    cue: bindings.Words = ""  # CUE: text between input and target of a decoder-only backbone, for example '\nAnswer:'
    # tokens kept of inputs and targets, EOS included; {} = LENGTHS in training, those of training in eval and infer
    feature_lengths: dict = dataclasses.field(default_factory=dict)
    input_buckets: list | tuple = ()  # padded lengths below the limit; () = those of data/batches.py. Fewer compile less and pad more
    target_buckets: list | tuple = ()
    mixing: str = "stochastic"  # 'stochastic' [MPT, DPT loader] | 'proportional' | 'equal'
    mixing_cap: int = 2**18  # rows of a task that count in mixing [DPT]
    k_shot: int = 0  # training rows of a few-shot run; 0 takes all
    k_per_class: bool = False  # False: k rows in all, balanced over classes [DePT train.py]; True: k of each class
    cache_dir: str = ""  # token caches; '' = ~/.cache/mpt_jax, or the environment's MPT_CACHE_DIR
    trust_caches: bool = False  # True: token caches as they were written last, without a look at the tasks' files [ours]
    prefetch: int = 2  # batches made ahead

    def __post_init__(self):
        checks.check_types(self)
        checks.check_choice("DataSettings.mixing", self.mixing, MIXINGS)
        # not a field: what a run is does not depend on whether its lengths were typed
        object.__setattr__(self, "lengths_given", bool(self.feature_lengths))
        if not self.lengths_given:
            object.__setattr__(self, "feature_lengths", dict(LENGTHS))
        if set(self.feature_lengths) != set(LENGTHS):
            message = f"DataSettings.feature_lengths (TASK_FEATURE_LENGTHS) = {self.feature_lengths!r}"
            raise UserError(f"{message}; it takes {{'inputs': tokens, 'targets': tokens}}.")
        checks.set_paths(self, {"cache_dir": "CACHE_DIR"}, buckets.SCHEMES)
        checks.check_texts("DataSettings.cue (CUE)", self.cue)
        limits = {"batch_size": (1, MOST_ROWS), "micro_batch_size": (1, MOST_ROWS), "smallest_micro_batch": (0, self.micro_batch_size)}
        for name, (low, high) in {**limits, "prefetch": (1, MOST_AHEAD), "mixing_cap": (1, math.inf), "k_shot": (0, 1_000_000)}.items():
            checks.check_range(f"DataSettings.{name}", getattr(self, name), low, high)
        for feature, length in self.feature_lengths.items():
            if not isinstance(length, int) or isinstance(length, bool) or not 2 <= length <= MOST_TOKENS:
                message = f"DataSettings.feature_lengths[{feature!r}] = {length!r} (TASK_FEATURE_LENGTHS)"
                raise UserError(f"{message}; it takes a number of tokens >= 2 and <= {MOST_TOKENS:,}.")
        for name in ("input_buckets", "target_buckets"):
            checks.check_whole_numbers(f"DataSettings.{name}", getattr(self, name), 1, MOST_TOKENS)

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
        checks.check_types(self)
        for name, low in (("data", 0), ("fsdp", 1), ("tensor", 1)):
            checks.check_range(f"MeshSettings.{name} (MESH_{name.upper()})", getattr(self, name), low, 1_000_000)


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Which tasks: names of tasks or mixtures, and the module that registers them."""

    names: list | tuple = ()  # TASKS
    mixture_or_task_name: str = ""  # one name instead of the list, as in T5X
    module: str = ""  # MIXTURE_OR_TASK_MODULE: a dotted name, or a path that ends in .py
    data_dir: str = ""  # TASK_DATA_DIR: published files of the paper's tasks; '' = the environment's MPT_TASK_DATA
    download: bool = False  # True: TFDS may download what is not there
    label_targets: str = "words"  # of the paper's tasks: 'words' [T5] | 'indices' [ATTEMPT]
    as_published: bool = False  # True: the paper's tasks as ATTEMPT made them, defects included (NAME:published)

    def __post_init__(self):
        checks.check_types(self)
        checks.check_choice("TaskSettings.label_targets", self.label_targets, ("words", "indices"))
        if self.names and self.mixture_or_task_name:
            both = f"TASKS = {list(self.names)} and MIXTURE_OR_TASK_NAME = {self.mixture_or_task_name!r}"
            raise UserError(f"both {both} are given; keep one.")
        if not all(isinstance(name, str) for name in self.names):
            raise UserError(f"TASKS = {self.names!r}; it takes a list of names.")
        checks.check_different("TASKS", self.names)
        checks.set_paths(self, {"data_dir": "TASK_DATA_DIR"})
        checks.set_paths(self, {"module": "MIXTURE_OR_TASK_MODULE"}, buckets.SCHEMES)

    @property
    def chosen(self) -> list[str]:
        """The names given, either way."""
        return list(self.names) or ([self.mixture_or_task_name] if self.mixture_or_task_name else [])


def scoring_steps(train_steps: int, eval_steps: int) -> int:
    """Steps between scores on the dev split; a tenth of the run where ``eval_steps`` is 0."""
    return eval_steps or max(train_steps // 10, 1)


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
    eval_method: str = "decode"  # how the dev split is answered: a row of ANSWERS; tasks without labels are decoded by any
    checkpoint_steps: int = 0  # steps between checkpoints; 0 = as eval_steps
    log_steps: int = 10  # steps between lines of metrics
    skip_damaged_checkpoints: bool = False  # True: a damaged checkpoint is put aside and the one before it continues
    score_tasks: bool = True  # score the dev split and keep the best bank of each run
    score_start: bool = False  # score what training starts from too, as step 0: it is kept where no step does better
    eval_batch_size: int = 64  # dev rows answered together
    # scorings without a better one after which a group of runs draws no more rows; 0 = never [DPT stops after 10]
    patience: int = 0
    encoder_teaching: float = 0.0  # pretraining: weight of the loss to sentence vectors in the rows [ours]
    dropout_rate: float = 0.0  # DROPOUT_RATE, whatever the backbone's own files say; prompts train without [PT-JAX]
    allow_unfinished: bool = False  # True: TEACHER_DIR and SOURCE_DIR may hold a run that has not come to its last step

    def __post_init__(self):
        checks.check_types(self)
        object.__setattr__(self, "model_dir", paths.expanded("MODEL_DIR", self.model_dir))  # what it may be: paths.writable_run
        checks.set_paths(self, {"teacher_dir": "TEACHER_DIR", "source_dir": "SOURCE_DIR"}, buckets.SCHEMES)
        checks.check_choice("TrainSettings.stage", self.stage, STAGES)
        checks.check_choice("TrainSettings.eval_method", self.eval_method, tuple(ANSWERS))
        zero_or_more = ("eval_steps", "eval_rows", "checkpoint_steps", "patience")
        for name, low in (("train_steps", 1), ("log_steps", 1), ("eval_batch_size", 1), *((name, 0) for name in zero_or_more)):
            checks.check_range(f"TrainSettings.{name}", getattr(self, name), low, MOST_STEPS)
        checks.check_range("TrainSettings.encoder_teaching", self.encoder_teaching, 0.0)
        Computation(dropout_rate=self.dropout_rate)
        if not self.seed_list:
            raise UserError("TrainSettings.seeds (SEED) = []: it takes a whole number, or a list of at least one.")
        checks.check_whole_numbers("TrainSettings.seeds (SEED)", self.seed_list, 0, MOST_SEED)
        if self.patience and not self.score_tasks:
            raise UserError(f"TrainSettings.patience = {self.patience} needs dev scores: set TrainSettings.score_tasks = True.")

    @property
    def trains_backbone(self) -> bool:
        """Whether all weights are trained, and no prompt."""
        return self.stage in WEIGHT_STAGES

    @property
    def steps_between_scores(self) -> int:
        """Steps between scores on the dev split."""
        return scoring_steps(self.train_steps, self.eval_steps)

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
    beams: int = 1  # BEAMS: answers are decoded by beam search with so many hypotheses (infer/beam.py), unless labels are ranked
    length_penalty: float = 1.0  # LENGTH_PENALTY: of beam search; above 0 favours longer answers [transformers' default]
    temperature: float = 0.0  # TEMPERATURE: above 0 draws each token, the flatter the higher; 0 takes the most likely one
    top_p: float = 1.0  # TOP_P: drawn from the most likely tokens that have this probability together
    sample_seed: int = 0  # SAMPLE_SEED: the same seed draws the same answer to the same input of a task

    def __post_init__(self):
        checks.check_types(self)
        checks.set_paths(self, {"model_dir": "MODEL_DIR"}, buckets.SCHEMES)
        checks.check_choice("EvalSettings.method", self.method, tuple(ANSWERS))
        checks.check_choice("EvalSettings.checkpoint", self.checkpoint, ("best", "last"))
        checks.check_range("EvalSettings.batch_size (EVAL_BATCH_SIZE)", self.batch_size, 1, MOST_ROWS)
        checks.check_range("EvalSettings.max_rows", self.max_rows, 0)
        bounds = {"beams": (1, MOST_BEAMS), "length_penalty": (-100.0, 100.0), "temperature": (0.0, 1000.0), "top_p": (1e-6, 1.0)}
        for name, (least, most) in (bounds | {"sample_seed": (0, MOST_SEED)}).items():
            checks.check_range(f"EvalSettings.{name} ({name.upper()})", getattr(self, name), least, most)
        if self.beams > 1 and self.temperature:
            raise UserError(f"BEAMS = {self.beams} and TEMPERATURE = {self.temperature}: beam search draws nothing; set one of them.")
        if self.top_p < 1 and not self.temperature:
            raise UserError(f"TOP_P = {self.top_p} cuts what is drawn, and TEMPERATURE = 0 draws nothing; set TEMPERATURE = 1.0.")


@dataclasses.dataclass(frozen=True)
class CompileSettings:
    """What the command compile compiles for."""

    topology: str = ""  # TOPOLOGY: a TPU slice, 'v5e:4x4' or 'v5p:2x2x2', pretend CPU devices, 'cpu:8', or 'here'

    def __post_init__(self):
        checks.check_types(self)
        if not self.topology:
            raise UserError("CompileSettings.topology (TOPOLOGY) is empty; type --topology v5e:4x4")


class Settings(NamedTuple):
    """Everything a run is made from."""

    train: TrainSettings
    backbone: BackboneSettings = BackboneSettings()
    prompt: PromptSettings = PromptSettings()
    distillation: DistillationSettings = DistillationSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    data: DataSettings = DataSettings()
    mesh: MeshSettings = MeshSettings()
    method: Any = None  # settings of its method's own (methods/method.py: MethodSettings); None: its defaults

    def describe(self) -> dict:
        """As plain JSON values."""
        return {name: dataclasses.asdict(value) for name, value in self._asdict().items() if value is not None}

    def computation(self) -> Computation:
        """How training computes the network; where the backbone is trained, attention gives its bias a gradient."""
        backbone, trains = self.backbone, self.train.trains_backbone
        if trains and backbone.attention == "fused":
            message = f"ATTENTION = 'fused' gives the position bias no gradient, and stage {self.train.stage!r} trains it"
            raise UserError(f"BackboneSettings.attention: {message}; set 'einsum'.")
        return Computation(backbone.dtype, backbone.remat, "einsum" if trains else backbone.attention, self.train.dropout_rate)
