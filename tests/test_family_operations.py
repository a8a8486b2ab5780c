"""What causal_operations.py and t5gemma_operations.py say a step needs, against the products of the program that JAX traces."""

import jax
import pytest
import tiny_families as tiny
from jax.interpreters import partial_eval
from test_compile import INPUTS, PROMPT, ROWS, TARGETS, gradient_of, product_operations, stage_of
from tiny_causal import CONFIGS, given

from mpt_jax.model.families import causal, causal_operations, t5gemma


def traced(config, weight: float, remat: str):
    """(the stage, operations of the products of an example's step; a compiler leaves out what is of no use, and so it is here)."""
    stage = stage_of(config, weight=weight, remat=remat)
    function, arguments = gradient_of(stage)
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    of_use, _ = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    return stage, product_operations(of_use) / ROWS


@pytest.mark.parametrize("remat", ["none", "layers"])
@pytest.mark.parametrize("name", ["t5gemma", "t5gemma2"])
def test_t5gemma(name, remat):
    config = tiny.T5GEMMAS[name]
    stage, counted = traced(config, 0.9, remat)
    parts = t5gemma.FAMILY.prompt_step(stage.program.network, PROMPT, INPUTS, TARGETS, True)
    assert parts["teacher"] == parts["forward"] and bool(parts["recomputed"]) == (remat == "layers")
    assert counted == sum(parts.values())


@pytest.mark.parametrize("weight, remat", [(0.9, "none"), (0.0, "none"), (0.9, "layers")])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_decoder_only(name, weight, remat):
    config = CONFIGS[name]
    stage, counted = traced(config, weight, remat)
    parts = causal.FAMILY.prompt_step(stage.program.network, PROMPT, INPUTS, TARGETS, weight > 0)
    assert parts["teacher"] == (parts["forward"] if weight else 0) and bool(parts["recomputed"]) == (remat == "layers")
    assert counted == sum(parts.values())


def test_a_prompt_that_rows_share_is_computed_once():
    network, config = given(CONFIGS["llama"]), CONFIGS["llama"]
    each, half = (causal.FAMILY.prompt_step(network, 100, 64, 8, True, prompts=share) for share in (1.0, 0.5))
    textbook = causal.FAMILY.prompt_step(network, 100, 64, 8, True, textbook=True, prompts=0.5)
    assert textbook == each and each["forward"] - half["forward"] == pytest.approx(
        0.5 * (3 * causal_operations.layer(config, 100, 100).forward + 2 * 100 * config.d_model * 2 * config.num_kv_heads * config.head_dim)
    )
