"""Promises of every method of the table that leaves the backbone frozen.

Covers methods/lora.py, methods/ia3.py, methods/bitfit.py, methods/adapter.py, methods/prefix.py, methods/dept.py, methods/attempt.py,
methods/vectors.py, methods/spot.py, methods/inside.py, methods/source_prompts.py and model/changes.py.
"""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_data import sized_cache
from tiny_families import real_only, rows, weights
from tiny_methods import (
    CAUSAL,
    DEEPER,
    FAMILIES,
    NAMES,
    SETTINGS,
    T5,
    backbone_of,
    method_of,
    moved,
    own_of_rows,
    program_of,
    settings_of,
    start_of,
)
from tiny_model import LENGTH, batch_at, run_forward
from tiny_run import row

from mpt_jax import digests
from mpt_jax.config import PromptSettings
from mpt_jax.data.sampler import Stream
from mpt_jax.errors import UserError
from mpt_jax.infer.beam import beam_decode
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.infer.likelihood import score_rows
from mpt_jax.methods.adapter import AdapterSettings
from mpt_jax.methods.attempt import AttemptSettings
from mpt_jax.methods.bitfit import BitfitSettings
from mpt_jax.methods.dept import DeptSettings
from mpt_jax.methods.ia3 import Ia3Settings
from mpt_jax.methods.lora import LoraSettings
from mpt_jax.methods.method import MUST, TASK, Start, kept_of, part_of, sizes
from mpt_jax.methods.prefix import PrefixSettings
from mpt_jax.methods.prompt import GIVEN
from mpt_jax.methods.vectors import VectorSettings, common_start, group_of
from mpt_jax.model.backbone import Backbone
from mpt_jax.model.families.family import Network
from mpt_jax.model.families.t5_config import T5_SIZES
from mpt_jax.train.program import assemble
from mpt_jax.train.run import describe_run
from mpt_jax.train.step import batch_totals

STEPS = 3
# a number added to every key moves all logits of a query alike, which softmax takes back
WITHOUT_EFFECT = "key/bias"


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    return [sized_cache(folder, 40 + n, name=f"task{n}", longest=14) for n in range(2)]


def train(program, stream_list, steps=STEPS):
    """(the train step, the state after some steps)."""
    step_fn = program.step()
    state = step_fn.init(program.trainable)
    for step in range(steps):
        state, _ = step_fn(state, program.frozen, batch_at(stream_list, step, len(program.plan.runs), program.spec))
    return step_fn, state


def one_each(caches, number: int) -> list:
    """A stream for each of so many runs, of one task each, in turn."""
    return [Stream(n // 2, (caches[n % 2],), (n,), 8) for n in range(number)]


def counted_for_base(name: str, settings, prompt_length: int) -> int:
    """Numbers that train for a task of T5-Base v1.0, from shapes alone."""
    config = T5_SIZES["t5_base"]
    params = {"token_embedder": {"embedding": jax.ShapeDtypeStruct((config.vocab_size, config.d_model), np.float32)}}
    chosen = settings_of(name)
    chosen = chosen._replace(method=settings, prompt=PromptSettings(length=prompt_length, rank=0), data=dataclasses.replace(
        chosen.data, feature_lengths={"inputs": 256, "targets": 128}))  # fmt: skip
    program = assemble(chosen, ("a",), Backbone("base", config, params, "bytes", ""), shapes_only=True)
    return sizes(program.trainable, program.method.parts)


@pytest.mark.parametrize(
    "name, settings, prompt_length, published, exact",
    [
        ("lora", LoraSettings(rank=32, biases=True), 100, "3.8M", 3_538_944 + 250_368),
        ("lora", LoraSettings(), 100, "0.9M", 12 * 3 * 2 * 8 * 2 * 768),
        ("ia3", Ia3Settings(), 100, "129K", 12 * (2 * 768 + 3072) + 12 * (4 * 768 + 3072)),
        ("bitfit", BitfitSettings(), 100, "282K", 250_368 + 32_128),  # quoted as 280K, 0.126 % of the backbone [Compacter]
        ("adapter", AdapterSettings(), 100, "1.9M", 48 * (2 * 768 * 24 + 24 + 768) + 47_616),
        ("adapter", AdapterSettings(drop_layers=5), 100, "1.1M", 28 * (2 * 768 * 24 + 24 + 768) + 47_616),
        ("adapter", AdapterSettings("pfeiffer"), 100, "1.0M", 24 * (2 * 768 * 24 + 24 + 768) + 47_616),  # 0.427 % [Compacter]
        ("prefix", PrefixSettings(), 100, "3.7M", 24 * 2 * 100 * 768),
        ("dept", DeptSettings(), 60, "76.8K", 60 * 768 + 30 * (256 + 768)),
        ("attempt", AttemptSettings(), 100, "232K", 76_800 + 2 * 768 * 100 + 2 * 768),
        ("vectors", VectorSettings(), 100, "77.4K", 76_800 + 6 * 100),
        ("spot", None, 100, "76.8K", 76_800),
        ("prompt", None, 100, "76.8K", 76_800),
    ],
)
def test_parameters_of_t5_base_are_counted_as_published(name, settings, prompt_length, published, exact):
    found, unit = counted_for_base(name, settings, prompt_length), {"K": 1e3, "M": 1e6}[published[-1]]
    digits = len(published.partition(".")[2].rstrip("KM"))
    assert found == exact and round(found / unit, digits) == float(published[:-1])


def test_run_json_counts_what_trains_and_not_what_is_kept():
    program = program_of("attempt", ("a", "b"))
    parameters = describe_run(program)["parameters"]
    assert parameters["per_task"] == 3 * 16 + 2 * 16 * 5 + 2 * 16 and parameters["trainable"] == 2 * parameters["per_task"]


@pytest.mark.slow
@pytest.mark.parametrize("name, family", [("lora:all", "t5"), ("ia3", "causal"), ("bitfit", "t5gemma2"), ("adapter", "t5")])
def test_at_the_start_the_network_is_as_it_was(name, family):
    """Adapters start near the identity [Houlsby 2.1]."""
    config, start = FAMILIES[family], start_of(name, FAMILIES[family])
    own = own_of_rows(name, method_of(name).init(start), [0, 0, 0], 1)
    found = run_forward(start.network, weights(config), rows(config), own).logits_BTV
    expected = run_forward(Network(config), weights(config), rows(config)).logits_BTV
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2 if name == "adapter" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5"])
@pytest.mark.parametrize("name", ["dept", "vectors"])
def test_at_the_start_it_is_its_prompt_alone(name, family):
    config, start = FAMILIES[family], start_of(name, FAMILIES[family])
    start = start._replace(settings=start.settings._replace(method=method_of(name).settings()))
    arrays = method_of(name).init(start)
    own = own_of_rows(name, arrays, [0, 0, 0], 1)
    found = run_forward(start.network, weights(config), rows(config), own).logits_BTV
    prompt = {"prompt": own["bank/shared" if name == "dept" else "vectors/start"]}
    expected = run_forward(Network(config, adaptation=GIVEN), weights(config), rows(config), prompt).logits_BTV
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


ANSWERED = [  # the parts of the network that methods change, in each family that computes them in its own way
    *((name, "t5") for name in ("lora:all", "ia3", "bitfit", "adapter", "prefix", "attempt")),
    *((name, family) for family in ("causal", "t5gemma2") for name in ("lora:all", "prefix")),
]


@pytest.mark.long
@pytest.mark.parametrize("name, family", ANSWERED)
def test_rows_have_their_own_parameters_in_every_way_of_answering(name, family):
    """Rows of two tasks together, by slots, give the logits of each alone; greedy tokens, a single beam and scores fit the logits."""
    config, start = FAMILIES[family], start_of(name, FAMILIES[family], seeds=(1, 2, 3))
    method = method_of(name)
    own, batch, params = moved(method.init(start), method.parts), rows(config), weights(config)
    together = batch._replace(slot_B=np.array([1, 0, 1], np.int32))
    taken = own_of_rows(name, own, [0, 2], 3)
    logits = real_only(run_forward(start.network, params, together, taken).logits_BTV)
    each = own_of_rows(name, own, [2, 0, 2], 3)
    np.testing.assert_allclose(logits, real_only(run_forward(start.network, params, batch, each).logits_BTV), rtol=0, atol=2e-5)
    assert np.abs(logits - real_only(run_forward(Network(config), params, batch).logits_BTV)).max() > 1e-2
    only, first = [own_of_rows(name, own, [task], 3) for task in (2, 0, 2)], batch._replace(slot_B=np.zeros(3, np.int32))
    alone = [run_forward(start.network, params, first, one).logits_BTV[n] for n, one in enumerate(only)]
    np.testing.assert_allclose(logits, real_only(np.stack(alone)), rtol=0, atol=2e-5)

    asked = together._replace(targets_BT=None, target_length_B=None)
    tokens_BT = np.asarray(greedy_decode(start.network, params, taken, asked, 4, (1,)))
    np.testing.assert_array_equal(beam_decode(start.network, params, taken, asked, 4, (1,), 1), tokens_BT)
    lengths = np.array([list(row).index(1) + 1 if 1 in row else 4 for row in tokens_BT], np.int32)
    written = together._replace(targets_BT=tokens_BT, target_length_B=lengths)
    again_BTV = np.asarray(run_forward(start.network, params, written, taken).logits_BTV)
    scores = score_rows(start.network, params, taken, written)
    for n, length in enumerate(lengths):
        np.testing.assert_array_equal(again_BTV[n, :length].argmax(-1), tokens_BT[n, :length])
        logp_TV = jax.nn.log_softmax(again_BTV[n, :length].astype(np.float32))
        np.testing.assert_allclose(scores[n], sum(logp_TV[t, tokens_BT[n, t]] for t in range(length)), rtol=0, atol=1e-4)


QUICK, EVERYWHERE = ("lora",), ("lora:all", "prefix")  # run by default; run on decoder-only models too
CASES = [
    pytest.param(name, config, id=f"{name}-{label}", marks=() if (name in QUICK and config is T5) else pytest.mark.long)
    for label, config in (("t5", T5), ("causal", CAUSAL)) for name in NAMES if (config is T5 and ":" not in name) or name in EVERYWHERE
]  # fmt: skip


def sums_of(step_fn, program, batch, trainable):
    """Gradients and sums by task of a batch, by the program that training runs."""
    sums, totals = step_fn.zeros(trainable), batch_totals(program.objective, batch)
    for micro in batch.micro:
        sums = step_fn.accumulate(trainable, program.frozen, sums, micro, totals, np.int32(0), np.int32(0))
    return sums


def loss_of(step_fn, program, batch, trainable) -> float:
    """The loss of a batch under other parameters."""
    sums = sums_of(step_fn, program, batch, trainable).by_task["loss"]
    return float(sum(np.asarray(sums) / batch_totals(program.objective, batch)["loss"]))


@pytest.mark.parametrize("name, config", CASES)
def test_eight_runs_train_together_what_is_theirs(name, config, caches):
    """Two tasks under four seeds in one program.

    The backbone, and what a method keeps, stay as they are to the bit, all else changes. Parameters after three updates are those of each
    run alone: 1e-5, float32. Gradients, away from the start, are those of differences along a random direction: 2 %.
    """
    seeds = [1, 2, 3, 4]
    program, stream_list = program_of(name, ("a", "b"), config, seeds=seeds), one_each(caches, 8)
    parts, kept = program.method.parts, kept_of(program.frozen, program.method.parts)
    assert len(program.plan.runs) == 8 and all(path in kept or path.startswith("backbone/") for path in program.frozen)
    frozen = {path: np.asarray(array).tobytes() for path, array in program.frozen.items()}
    start = {path: np.array(array) for path, array in program.trainable.items()}
    step_fn, state = train(program, stream_list)
    assert {path: np.asarray(array).tobytes() for path, array in program.frozen.items()} == frozen
    assert state.trainable.keys() == start.keys() and not any(path in name for name in digests.names(state.opt_state) for path in kept)
    for path, array in state.trainable.items():
        assert not np.array_equal(start[path], array) or path.endswith(WITHOUT_EFFECT), path

    _, one = train(program_of(name, ("b",), config, seeds=4), [dataclasses.replace(stream_list[7], bank_index=(0,))])
    for path, array in one.trainable.items():
        if not path.endswith(WITHOUT_EFFECT):  # Adam makes whole steps of the rounding of a gradient that is none
            np.testing.assert_allclose(np.asarray(state.trainable[path])[7], np.asarray(array)[0], rtol=0, atol=1e-5, err_msg=path)

    batch, rng = batch_at(stream_list, 0, 8, program.spec), np.random.default_rng(3)
    there = moved(start, parts, spread=0.1)
    way = {path: rng.normal(size=array.shape).astype(np.float32) for path, array in sorted(there.items())}
    grads = sums_of(step_fn, program, batch, there).grads
    for path, grad in grads.items():
        assert np.any(grad) or path.endswith(WITHOUT_EFFECT), path
    slope, step = sum(float(np.vdot(grads[path], way[path])) for path in way), 2e-3
    ends = [loss_of(step_fn, program, batch, {p: there[p] + sign * step * way[p] for p in way}) for sign in (1, -1)]
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.02, abs=1e-2)



@pytest.mark.parametrize("name", NAMES)
def test_tasks_of_a_group_share_what_is_the_groups(name):
    """Several tasks at once: one set of parameters learns from all of them, except what each task has of its own (ATTEMPT, vectors)."""
    stage = "target" if method_of(name).from_source == MUST else "source"
    settings = settings_of(name, stage)
    shared = dataclasses.replace(settings.prompt, shared_over_targets=True)
    settings = settings._replace(distillation=dataclasses.replace(settings.distillation, weight=0.0), prompt=shared)
    program = assemble(settings, ("a", "b"), backbone_of(DEEPER))
    for path, array in program.trainable.items():
        assert len(array) == (2 if part_of(path, program.method.parts).first_axis == TASK else 1), path


@pytest.mark.parametrize(
    "name, stage, change, message",
    [
        ("lora", "target", {"source_dir": "/there"}, "SOURCE_DIR = '/there' is given, and METHOD = 'lora' starts from no source run"),
        ("bitfit", "finetune", {}, "METHOD = 'bitfit' trains nothing of the backbone, and stage 'finetune' trains all of it"),
        ("attempt", "teacher", {}, "METHOD = 'attempt' starts from prompts of SOURCE_DIR, which stage 'teacher' .* does not read"),
        ("spot", "teacher", {}, "METHOD = 'spot' starts from prompts of SOURCE_DIR"),
    ],
)
def test_what_does_not_go_together_is_refused(name, stage, change, message):
    with pytest.raises(UserError, match=message):
        assemble(settings_of(name, stage, **change), ("a",), backbone_of(T5))


def test_settings_of_another_method_are_refused():
    settings = settings_of("lora", method="prompt")
    with pytest.raises(UserError, match="LoraSettings is set, and METHOD = 'prompt' does not read it: type --method lora"):
        assemble(settings, ("a",), backbone_of(T5))


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("lora", {"rank": 0}, "LoraSettings.rank = 0 is outside 1"),
        ("lora", {"matrices": ["query", "query"]}, "LoraSettings.matrices = .*different names of matrices"),
        ("lora", {"matrices": ["q_proj"]}, "'q_proj' is not a kernel of 'tiny'; it has query, key, value, out, wi_0, wi_1, wo"),
        ("ia3", {"inputs": ["key"]}, "Ia3Settings.results and inputs = .*different names"),
        ("adapter", {"kind": "parallel"}, "AdapterSettings.kind = 'parallel' is not one of 'houlsby', 'pfeiffer'"),
        ("adapter", {"drop_layers": 1}, "AdapterSettings.drop_layers = 1, and a stack of 'tiny' has 1 layers: take 0 or fewer"),
        ("prefix", {"stacks": ["cross"]}, "PrefixSettings.stacks = .*'encoder' and 'decoder'"),
        ("prefix", {"hidden": -1}, "PrefixSettings.hidden = -1 is outside 0"),
        ("prefix", {"init_scale": -0.1}, "PrefixSettings.init_scale = -0.1 is outside 0.0"),
        ("attempt", {"temperature": 0.0}, "AttemptSettings.temperature = 0.0 is outside"),
    ],
)
def test_wrong_settings_of_a_method_are_named(name, settings, message):
    with pytest.raises(UserError, match=message):
        assemble(settings_of(name)._replace(method=method_of(name).settings(**settings)), ("a",), backbone_of(T5))


def test_prefixes_of_a_stack_that_a_backbone_lacks_are_refused():
    settings = settings_of("prefix")._replace(method=PrefixSettings(stacks=["encoder"]))
    with pytest.raises(UserError, match="PrefixSettings.stacks = .*: backbone 'tiny' has none of them"):
        assemble(settings, ("a",), backbone_of(CAUSAL))


def test_every_variant_is_of_a_method_of_the_table():
    assert all(type(settings) is method_of(name).settings for name, settings in SETTINGS.items())


def test_spot_trains_a_run_from_each_source(caches):
    """In one program; each starts from its source's prompt, and the source is told in run.json."""
    program = program_of("spot", ("a", "b"))
    found = [(run.task, run.source, run.group) for run in program.plan.runs]
    assert found == [(task, f"source{n}", 2 * n + m) for n in range(3) for m, task in enumerate("ab")]
    prompts = np.repeat(np.asarray(start_of("spot", T5).source[0]["bank/shared"]), 2, axis=0)
    np.testing.assert_array_equal(program.trainable["bank/shared"], prompts)
    assert [row["source"] for row in describe_run(program)["runs"]] == [source for _, source, _ in found]
    settings = settings_of("spot")
    chosen = settings._replace(prompt=dataclasses.replace(settings.prompt, transfer_task=["source2"]))
    assert [run.source for run in assemble(chosen, ("a",), backbone_of(T5)).plan.runs] == ["source2"]
    wrong = settings._replace(prompt=dataclasses.replace(settings.prompt, transfer_task="nothing"))
    with pytest.raises(UserError, match="transfer_task = 'nothing' is not a task of SOURCE_DIR: source0, source1, source2"):
        assemble(wrong, ("a",), backbone_of(T5))


@pytest.mark.parametrize("name", ["attempt", "vectors"])
def test_of_several_sources_those_that_are_named_are_put_together(name):
    def program(*named, shapes_only: bool = False):
        settings = settings_of(name)
        prompt = dataclasses.replace(settings.prompt, transfer_task=named[0] if len(named) == 1 else list(named))
        return assemble(settings._replace(prompt=prompt), ("a",), backbone_of(T5), shapes_only=shapes_only)

    every = np.asarray(program("source0", "source1", "source2").frozen[f"{name}/sources"])
    np.testing.assert_array_equal(program().frozen[f"{name}/sources"], every)
    np.testing.assert_array_equal(program("source2", "source0").frozen[f"{name}/sources"], every[:, [2, 0]])
    found, shapes = program("source1"), program("source1", shapes_only=True)
    np.testing.assert_array_equal(found.frozen[f"{name}/sources"], every[:, [1]])
    assert {path: array.shape for path, array in found.trainable.items()} == {path: array.shape for path, array in shapes.trainable.items()}
    for wrong, message in (
        ("nothing", "'nothing' is not a task of SOURCE_DIR: source0, source1, source2"),
        (["source0", "source0"], "'source0' is there twice"),
        ({"a": "source0"}, f"METHOD = '{name}' takes the same source tasks for all targets"),
    ):
        with pytest.raises(UserError, match=message):
            program(wrong)


def test_sources_that_started_from_factors_of_their_own_are_no_vectors():
    run = {"runs": [row("s")], "settings": {"prompt": {"transfer": "none", "rank": 1, "factor_init": "normal"}}}
    start = Start(settings_of("vectors"), None, {}, np.array([0]), [1], ["a"], source=({}, run))
    with pytest.raises(UserError, match="factors by factor_init 'normal', each from a prompt of its own; take sources with factor_init"):
        common_start(start, 1)


def test_sources_join_a_group_in_the_order_of_their_similarity():
    """To the target, and to all that joined before."""
    change = np.array([[[1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]])
    sources = np.array([[[1.0, 0.9, 0.0]], [[0.5, -1.0, 0.0]], [[-1.0, 0.0, 0.0]], [[1.0, 0.0, 3.0]]])
    found = group_of(change, np.stack([sources] * 2), np.zeros(2))
    # the second is similar to the target and not to the first; nothing is similar to no change
    np.testing.assert_array_equal(found, [[1, 0, 0, 1], [0, 0, 0, 0]])


def test_lengths_of_sources_must_be_those_of_the_target():
    settings = settings_of("attempt")
    longer = settings._replace(prompt=dataclasses.replace(settings.prompt, length=LENGTH + 1))
    with pytest.raises(UserError, match=f"PROMPT_LENGTH = {LENGTH + 1}, but SOURCE_DIR holds prompts of length {LENGTH}"):
        assemble(longer, ("a",), backbone_of(T5))
