"""The decoder-only family (causal.py, causal_config.py, causal_names.py, model/rotary.py) against transformers, as recorded golden values
and live; its prefix, its cache and its seams to methods.

``python tests/test_causal.py`` records golden_causal.npz anew from transformers.
B examples, U different tasks, L input tokens, P prompt positions, T target tokens, V vocabulary.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_causal import CONFIGS, flat_params, given, own, params, prompts, rows, smaller
from tiny_model import run_forward as run

from mpt_jax.config import Computation
from mpt_jax.infer.decode import greedy_decode
from mpt_jax.infer.likelihood import Labels, score_labels, score_rows, walk_labels
from mpt_jax.model import formats
from mpt_jax.model.families.causal_config import CausalConfig
from mpt_jax.model.families.family import Adaptation, Adapted, Network, Rows
from mpt_jax.model.network import decode_step, decode_targets, empty_cache, forward, prefill

GOLDEN = Path(__file__).parent / "golden_causal.npz"
STEPS, END = 6, 1
SLOTS = (0, 1, 0)


def case(config: CausalConfig, prompted: bool) -> tuple[Network, dict | None, Rows]:
    """Network, parameters of the two tasks and rows of unequal lengths."""
    return (given(config), own(prompts()), rows(slots=SLOTS)) if prompted else (Network(config), None, rows())


def ours(config: CausalConfig, prompted: bool) -> dict[str, np.ndarray]:
    """Logits of the real target positions, one after the other, and greedy tokens."""
    network, mine, some = case(config, prompted)
    logits_BTV = np.asarray(run(network, params(config), some, mine).logits_BTV)
    tokens_BT = greedy_decode(network, params(config), mine, some, STEPS, (END,))
    real = [logits_BTV[row, :length] for row, length in enumerate(some.target_length_B)]
    return {"logits": np.concatenate(real), "tokens": np.asarray(tokens_BT)}


def their_model(config: CausalConfig, folder: Path):
    """transformers' model of a folder that we write."""
    import torch
    import transformers

    formats.write_backbone("hf", str(folder), config, flat_params(config))
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(folder, attn_implementation="eager", dtype=torch.float32).eval()


def theirs(config: CausalConfig, prompted: bool, folder: Path) -> dict[str, np.ndarray]:
    """The same of transformers, a row at a time. Its embedding scales Gemma's tokens, so prompts in front are scaled by hand."""
    import torch

    model, (_, mine, some) = their_model(config, folder), case(config, prompted)
    embed, scale = model.get_input_embeddings(), config.d_model**0.5 if config.scaled_embedding else 1.0

    def logits_of(vectors):
        with torch.no_grad():
            return model(inputs_embeds=vectors[None]).logits[0]

    logits, tokens = [], np.zeros((len(some.inputs_BL), STEPS), np.int32)
    for row, (inputs, length, targets, count) in enumerate(zip(*some[:4], strict=True)):
        prompt = torch.tensor(mine["prompt"][SLOTS[row]] * scale) if prompted else torch.zeros(0, config.d_model)
        seen = torch.cat([prompt, embed(torch.tensor(inputs[:length].astype(np.int64)))])
        whole = torch.cat([seen, embed(torch.tensor(targets[: count - 1].astype(np.int64)))])
        logits.append(logits_of(whole)[len(seen) - 1 :].numpy())
        for step in range(STEPS):
            token = int(logits_of(seen)[-1].argmax())
            tokens[row, step] = token
            if token == END:
                break
            seen = torch.cat([seen, embed(torch.tensor([token]))])
    return {"logits": np.concatenate(logits), "tokens": tokens}


def check(found: dict, expected: dict) -> None:
    """float32: logits within 1e-4 of their largest, tokens equal."""
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-4 * max(np.abs(expected["logits"]).max(), 1))
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])


@pytest.mark.parametrize("prompted", [pytest.param(False, marks=pytest.mark.long), True])
@pytest.mark.parametrize("name", CONFIGS)
def test_golden_values_of_transformers(name, prompted):
    golden = np.load(GOLDEN)
    check(ours(CONFIGS[name], prompted), {key: golden[f"{name}/{prompted}/{key}"] for key in ("logits", "tokens")})


BESIDE = ("llama31", "gemma3")  # of the others a quick test has recorded values


@pytest.mark.slow
@pytest.mark.parametrize("prompted", [pytest.param(False, marks=pytest.mark.long), True])
@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in BESIDE else pytest.mark.long) for name in CONFIGS])
def test_logits_and_greedy_tokens_are_those_of_transformers(name, prompted, tmp_path):
    pytest.importorskip("transformers", reason="parity needs the extra `parity`")
    check(ours(CONFIGS[name], prompted), theirs(CONFIGS[name], prompted, tmp_path / "x"))


WINDOWED = "gemma3"  # windows, full layers, norms of queries and keys, scaled embeddings: what can go wrong in a cache
LONG_WINDOWED = pytest.param(WINDOWED, marks=pytest.mark.long)


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.long) for name in ("llama", "gemma2")), WINDOWED])
def test_steps_give_the_logits_of_the_whole(name):
    config = CONFIGS[name]
    network, mine, some = case(config, True)
    whole_BTV = np.asarray(run(network, params(config), some, mine).logits_BTV)
    prefilled = jax.jit(prefill, static_argnums=0)(network, params(config), some, mine)
    given_BTV = jax.jit(lambda *given: decode_targets(*given).logits_BTV, static_argnums=0)(
        network, params(config), prefilled, some.targets_BT
    )
    step, cache, token_B = jax.jit(decode_step, static_argnums=0), empty_cache(network, 3, 4), prefilled.start_B
    np.testing.assert_array_equal(token_B, [some.inputs_BL[row, length - 1] for row, length in enumerate(some.input_length_B)])
    for position in range(4):
        logits_BV, cache = step(network, params(config), prefilled, cache, token_B, position)
        token_B = some.targets_BT[:, position]
        for row, length in enumerate(some.target_length_B):
            if position < length:
                np.testing.assert_allclose(logits_BV[row], whole_BTV[row, position], rtol=0, atol=2e-5)
                np.testing.assert_allclose(given_BTV[row, position], whole_BTV[row, position], rtol=0, atol=2e-5)


def loss(network: Network, weights: dict, some: Rows, mine: dict, dropout_rng=None):
    """A number that depends on all real logits."""
    outputs = forward(network, weights, some, mine, dropout_rng)
    real_BT = outputs.states["decoder"].real_BY
    return jnp.sum(jnp.where(real_BT[..., None], jnp.sin(outputs.logits_BTV), 0.0))


gradient = jax.jit(jax.value_and_grad(loss, argnums=3), static_argnums=0)


@pytest.mark.parametrize("name", ["qwen2", LONG_WINDOWED])
def test_a_prompt_shared_by_rows_is_one_for_each(name):
    """U = 2 prompts for 3 rows: the same loss and, added up over its rows, the same gradient as with a prompt for each row."""
    network, weights, shared_UPD = given(CONFIGS[name]), params(CONFIGS[name]), prompts()
    value, found = gradient(network, weights, rows(slots=SLOTS), own(shared_UPD))
    other, each = gradient(network, weights, rows(), own(shared_UPD[list(SLOTS)]))
    np.testing.assert_allclose(value, other, rtol=1e-5)
    added = np.stack([sum(each["prompt"][row] for row in range(3) if SLOTS[row] == task) for task in range(2)])
    np.testing.assert_allclose(found["prompt"], added, rtol=0, atol=1e-5 * np.abs(added).max())
    one, alone = gradient(network, weights, rows(slots=(0, 0, 0)), own(shared_UPD[:1]))
    same, twice = gradient(network, weights, rows(slots=(0, 0, 0)), own(shared_UPD))
    np.testing.assert_allclose(one, same, rtol=1e-5)  # one product for all rows, or one a row
    np.testing.assert_allclose(alone["prompt"], twice["prompt"][:1], rtol=0, atol=1e-5 * np.abs(added).max())
    assert not np.any(twice["prompt"][1])


@pytest.mark.parametrize("name", ["llama31", "gemma2"])
def test_a_prompt_of_embeddings_is_those_tokens_in_front(name):
    """Prompts are stored as rows of the embedding table, before Gemma's scale, whatever the family makes of them."""
    config, weights = CONFIGS[name], params(CONFIGS[name])
    some = rows(input_lengths=(5, 3), target_lengths=(4, 2))
    front = np.array([[7, 30, 4], [8, 9, 60]], np.int32)
    prompt_UPD = weights["token_embedder"]["embedding"][front]
    found = run(given(config), weights, some._replace(slot_B=np.array([0, 1], np.int32)), own(prompt_UPD)).logits_BTV
    longer = Rows(np.concatenate([front, some.inputs_BL], axis=1), some.input_length_B + 3, *some[2:4])
    np.testing.assert_allclose(found, run(Network(config), weights, longer).logits_BTV, rtol=0, atol=2e-5)


def test_nothing_past_a_rows_end_is_seen():
    """Rows filled up with other tokens, and to other lengths, give the same."""
    network, weights, mine = given(CONFIGS[WINDOWED]), params(CONFIGS[WINDOWED]), own(prompts())
    some, other = rows(slots=SLOTS), rows(seed=5, slots=SLOTS)

    def filled(mine_BL, length_B, fill_BL, more):
        keep = np.arange(mine_BL.shape[1]) < length_B[:, None]
        return np.pad(np.where(keep, mine_BL, fill_BL), ((0, 0), (0, more)))

    inputs = filled(some.inputs_BL, some.input_length_B, other.inputs_BL, 4)
    changed = some._replace(inputs_BL=inputs, targets_BT=filled(some.targets_BT, some.target_length_B, other.targets_BT, 2))
    before, after = (np.asarray(run(network, weights, each, mine).logits_BTV) for each in (some, changed))
    for row, length in enumerate(some.target_length_B):
        np.testing.assert_allclose(after[row, :length], before[row, :length], rtol=0, atol=2e-5)
    tokens = [np.asarray(greedy_decode(network, weights, mine, each, STEPS, (END,))) for each in (some, changed)]
    np.testing.assert_array_equal(*tokens)


def test_an_input_of_one_token_and_a_row_that_only_fills_up():
    """An input without anything before its last token; a filler row has lengths 0 and harms nobody."""
    network, weights, mine = given(CONFIGS["llama"]), params(CONFIGS["llama"]), own(prompts())
    short = rows(input_lengths=(1, 1), target_lengths=(4, 2), slots=(0, 1))
    alone = np.asarray(run(network, weights, short, mine).logits_BTV)
    longer = short._replace(inputs_BL=np.pad(short.inputs_BL, ((0, 0), (0, 3)), constant_values=5))
    np.testing.assert_allclose(run(network, weights, longer, mine).logits_BTV, alone, rtol=0, atol=2e-5)
    filler = Rows(*(np.concatenate([array, np.zeros_like(array[:1])]) for array in longer))
    found = np.asarray(run(network, weights, filler, mine).logits_BTV)
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found[:2], alone, rtol=0, atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", LONG_WINDOWED])
def test_bfloat16_is_near_float32(name):
    config, some, mine = CONFIGS[name], rows(slots=SLOTS), own(prompts())
    # weights of half the size: attention is less of a choice between one key and another, which rounding may turn
    weights = jax.tree.map(lambda array: (0.5 * array).astype(jnp.bfloat16), params(config))
    found = run(given(config, dtype="bfloat16"), weights, some, mine)
    assert found.states["decoder"].output_BYD.dtype == jnp.bfloat16
    rounded = jax.tree.map(lambda array: array.astype(np.float32), weights)
    expected = np.asarray(run(given(config), rounded, some, mine).logits_BTV)
    assert np.abs(np.asarray(found.logits_BTV, np.float32) - expected).max() < 0.05 * np.abs(expected).max()
    value, grads = gradient(given(config, dtype="bfloat16"), weights, some, mine)
    assert np.isfinite(value) and np.all(np.isfinite(grads["prompt"])) and np.any(grads["prompt"])
    assert grads["prompt"].dtype == jnp.float32
    tokens = greedy_decode(given(config, dtype="bfloat16"), weights, mine, some, STEPS, (END,))
    assert tokens.shape == (3, STEPS)


@pytest.mark.slow
def test_rematerialised_layers_give_the_same_gradient():
    weights, some, mine = params(CONFIGS["gemma2"]), rows(slots=SLOTS), own(prompts())
    value, grads = gradient(given(CONFIGS["gemma2"]), weights, some, mine)
    other, again = gradient(given(CONFIGS["gemma2"], remat="layers"), weights, some, mine)
    np.testing.assert_allclose(other, value, rtol=1e-6)
    np.testing.assert_allclose(again["prompt"], grads["prompt"], rtol=0, atol=1e-6 * np.abs(grads["prompt"]).max())


@pytest.mark.long
def test_dropout_follows_its_seed_and_rate_zero_needs_none():
    weights, some, mine = params(CONFIGS["llama"]), rows(slots=SLOTS), own(prompts())
    dropped = jax.jit(loss, static_argnums=0)
    network, seeds = given(CONFIGS["llama"], dropout_rate=0.3), [jax.random.PRNGKey(n) for n in range(2)]
    first, again, other = (float(dropped(network, weights, some, mine, seeds[n])) for n in (0, 0, 1))
    plain = float(dropped(network, weights, some, mine))
    assert first == again and len({first, other, plain}) == 3
    none = given(CONFIGS["llama"], dropout_rate=0.0)
    np.testing.assert_allclose(float(dropped(none, weights, some, mine, seeds[0])), plain, rtol=1e-6)
    random_bits = [
        str(jax.make_jaxpr(functools.partial(loss, each))(weights, some, mine, seeds[0])).count("random_bits") for each in (network, none)
    ]
    assert random_bits[0] > 0 == random_bits[1]


LABELS = Labels(np.array([[7, 1, 0], [7, 8, 1], [30, 1, 0]], np.int32), np.array([2, 3, 2], np.int32))


@pytest.mark.long
@pytest.mark.parametrize("name", ["qwen3", LONG_WINDOWED])
def test_labels_are_ranked_over_one_prefix(name):
    """Log-probabilities of each label are those of a pass over prompt, input and label; the walk chooses as greedy decoding would."""
    config = CONFIGS[name]
    network, weights, mine = given(config), params(config), own(prompts())
    some = rows(slots=SLOTS)._replace(targets_BT=None, target_length_B=None)
    found_BC = np.asarray(score_labels(network, weights, mine, some, LABELS))
    chosen_B = np.asarray(walk_labels(network, weights, mine, some, LABELS))
    logits_BCTV = []
    for label, length in zip(*LABELS, strict=True):
        targets = np.broadcast_to(label, (3, 3)).astype(np.int32)
        with_label = some._replace(targets_BT=targets, target_length_B=np.full(3, length, np.int32))
        logits_BTV = np.asarray(run(network, weights, with_label, mine).logits_BTV, np.float64)
        logits_BCTV.append(logits_BTV)
        logp = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
        wanted_B = np.take_along_axis(logp, targets[..., None].astype(int), -1)[:, :length, 0].sum(1)
        column = [index for index in range(3) if np.array_equal(LABELS.tokens_CT[index], label)][0]
        np.testing.assert_allclose(found_BC[:, column], wanted_B, rtol=0, atol=1e-4)
        np.testing.assert_allclose(score_rows(network, weights, mine, with_label), wanted_B, rtol=0, atol=1e-4)
    for row in range(3):
        first = max((7, 30), key=lambda token: logits_BCTV[0][row, 0, token])
        second = max((1, 8), key=lambda token: logits_BCTV[0][row, 1, token])
        assert chosen_B[row] == (2 if first == 30 else 0 if second == 1 else 1)


def test_a_method_that_changes_inputs_is_seen_row_by_row():
    """An adaptation that is not a prefix: each row gets its own parameters, and the network sees what it makes of the input."""
    config, weights = CONFIGS["gemma"], params(CONFIGS["gemma"])
    table = weights["token_embedder"]["embedding"]

    def replace(mine, embedded_BLD, real_BL):
        assert mine["vector"].shape[0] == embedded_BLD.shape[0]
        is_first = jnp.arange(embedded_BLD.shape[1])[None, :, None] == 0
        return Adapted(None, jnp.where(is_first & real_BL[..., None], mine["vector"][:, None], embedded_BLD))

    network = Network(config, Computation(), Adaptation(replace))
    some, tokens = rows(slots=SLOTS), np.array([50, 60])
    found = run(network, weights, some, {"vector": table[tokens]}).logits_BTV
    inputs = some.inputs_BL.copy()
    inputs[:, 0] = tokens[list(SLOTS)]
    wanted = run(Network(config), weights, some._replace(inputs_BL=inputs, slot_B=None)).logits_BTV
    for row, length in enumerate(some.target_length_B):
        np.testing.assert_allclose(found[row, :length], wanted[row, :length], rtol=0, atol=2e-5)


def test_states_are_those_of_the_targets():
    """What distillation compares: the residual stream after each layer and the output, at the positions that targets are predicted from."""
    network, mine, some = case(CONFIGS["llama"], True)
    outputs = run(network, params(CONFIGS["llama"]), some, mine)
    assert outputs.states.keys() == {"decoder"}
    decoder = outputs.states["decoder"]
    assert len(decoder.layers) == 4 and decoder.output_BYD.shape == decoder.layers[0].shape == (3, 4, 32)
    np.testing.assert_array_equal(decoder.real_BY, np.arange(4) < np.array([[4], [2], [3]]))


def test_heads_of_grouped_keys_and_one_key_for_all():
    """As many keys as heads, and one for all heads, against the grouped form with its keys repeated."""
    config, weights = CONFIGS["llama"], params(CONFIGS["llama"])
    each = smaller("llama", num_kv_heads=4)
    repeated = jax.tree.map(lambda array: array, weights)
    for layer in (value for key, value in repeated["decoder"].items() if key.startswith("layers")):
        for name in ("key", "value"):
            kernel = layer["attention"][name]["kernel"].reshape(32, 2, 8)
            layer["attention"][name] = {"kernel": np.repeat(kernel, 2, axis=1).reshape(32, 32)}
    some = rows()
    np.testing.assert_allclose(
        run(Network(each), repeated, some).logits_BTV, run(Network(config), weights, some).logits_BTV, rtol=0, atol=2e-5
    )
    single = dataclasses.replace(config, num_kv_heads=1)
    assert np.all(np.isfinite(run(Network(single), params(single), some).logits_BTV))


if __name__ == "__main__":
    import tempfile

    recorded = {}
    for name, config in CONFIGS.items():
        for prompted in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                recorded |= {f"{name}/{prompted}/{key}": array for key, array in theirs(config, prompted, Path(folder) / "x").items()}
    np.savez_compressed(GOLDEN, **recorded)
