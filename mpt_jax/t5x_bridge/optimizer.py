"""T5X's optimiser interface over ours: only the prompt bank is trained, and the frozen weights have no optimiser state."""

from collections.abc import Callable, Mapping

import flax
import jax
import jax.numpy as jnp
from t5x import optimizers

from mpt_jax.config import OptimizerSettings
from mpt_jax.methods.bank import BANK
from mpt_jax.train.optimizer import Optimizer, schedule


@flax.struct.dataclass
class HyperParameters:
    """T5X hands a learning rate over at every step. It is not used: each parameter group of ours has its own, with a schedule."""

    learning_rate: float | None = None


def bank_of(tree: Mapping) -> dict:
    """The bank's arrays of a tree of parameters (or gradients) by path, as they train."""
    return {BANK + name: array for name, array in tree[BANK.rstrip("/")].items()}


class BankOptimizer(optimizers.OptimizerDef):
    """An optimiser definition in which the bank is updated by ``optimizer`` (train/optimizer.py) and every other parameter stays.

    Its state is a flat dict of the bank's optimiser arrays, by names such as ``1.mu.bank.shared``.
    """

    def __init__(self, optimizer: Optimizer):
        super().__init__(HyperParameters())
        self.optimizer = optimizer

    def init_state(self, params) -> optimizers.OptimizerState:
        """The state before the first update."""
        return optimizers.OptimizerState(jnp.zeros((), jnp.int32), self._named(self.optimizer.init(bank_of(params))))

    def apply_gradient(self, hyper_params, params, state, grads):
        """Parameters and state after an update."""
        del hyper_params
        bank = bank_of(params)
        structure = jax.tree.structure(jax.eval_shape(self.optimizer.init, bank))
        opt_state = jax.tree.unflatten(structure, list(state.param_states.values()))
        bank, opt_state, _, _ = self.optimizer.update(bank_of(grads), opt_state, bank, state.step)
        new = {name.removeprefix(BANK): array for name, array in bank.items()}
        params = flax.core.copy(params, {BANK.rstrip("/"): flax.core.freeze(new)})
        return params, optimizers.OptimizerState(state.step + 1, self._named(opt_state))

    def derive_logical_axes(self, optimizer, param_logical_axes):
        """Logical axes of parameters and state; the state is on every device."""
        axes = jax.tree.map(lambda _: None, optimizer.state_dict())
        axes["target"] = param_logical_axes
        return optimizer.restore_state(flax.core.unfreeze(axes))

    def _named(self, opt_state) -> dict[str, jax.Array]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(opt_state)
        names = [jax.tree_util.keystr(keys, simple=True, separator=".").replace("/", ".") for keys, _ in leaves]
        return {f"{number:02d}.{name}": leaf for number, (name, (_, leaf)) in enumerate(zip(names, leaves, strict=True))}


def learning_rate(optimizer: OptimizerSettings, train_steps: int) -> Callable:
    """The learning rate of P* at a step, for T5X's Trainer, which writes it among its metrics."""
    multiplier = schedule(optimizer, train_steps)
    return lambda step: jnp.asarray(optimizer.learning_rate * multiplier(step), jnp.float32)
