"""Which parts of INITIAL_CHECKPOINT_PATH a training run takes over."""

from collections.abc import Mapping
from typing import Any

from t5x import state_utils

from mpt_jax.errors import UserError
from mpt_jax.methods.bank import BANK
from mpt_jax.model.formats import names

TARGET = "target/"


def take_backbone(
    checkpoint_state: Mapping[str, Any], state: Mapping[str, Any], *, is_resuming: bool = False, keep_bank: bool = False
) -> Mapping[str, Any]:
    """A RestoreCheckpointConfig.state_transformation_fns entry: the backbone's weights alone, so that steps count from 0.

    With fallback_to_scratch T5X then fills in what is not here: step, optimiser state and, unless ``keep_bank``, the prompt bank. A run
    that continues from MODEL_DIR takes everything. Raises UserError naming the weights that the checkpoint lacks.
    """
    if is_resuming:
        return checkpoint_state
    there, wanted = (state_utils.flatten_state_dict(tree) for tree in (checkpoint_state, state))
    needed = [path for path in wanted if path.startswith(TARGET) and (keep_bank or not path.startswith(TARGET + BANK))]
    missing = [path.removeprefix(TARGET) for path in needed if path not in there]
    if missing:
        raise UserError(f"INITIAL_CHECKPOINT_PATH lacks {names.listed(missing)}; give the checkpoint of a whole T5.")
    return state_utils.traverse_util.unflatten_dict({path: there[path] for path in needed}, sep="/")
