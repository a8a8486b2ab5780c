"""Which parameters train: a table ``(regular expression, group)`` over parameter paths; the first row that matches wins.

Parameters of the group 'frozen' are an argument of the step that is never differentiated, optimised or saved; every other group
has its learning rate. A stage is a row of STAGE_TABLES; no setting chooses another split.
"""

import re
from collections.abc import Mapping, Sequence

from mpt_jax.errors import UserError

FROZEN = "frozen"
GROUPS = ("prompt", "factors", "weights", FROZEN)

PROMPTS_ONLY = (("bank/shared", "prompt"), ("bank/(cols|rows)", "factors"), ("backbone/.*", FROZEN))
EVERYTHING = (("backbone/.*", "weights"), ("head/.*", "weights"))

STAGE_TABLES: dict[str, tuple[tuple[str, str], ...]] = {
    "teacher": PROMPTS_ONLY,
    "source": PROMPTS_ONLY,
    "target": PROMPTS_ONLY,
    "fewshot": PROMPTS_ONLY,
    "finetune": EVERYTHING,
    "pretrain": EVERYTHING,
}


def group_of(path: str, table: Sequence[tuple[str, str]]) -> str:
    """The group of one parameter. Raises UserError if no row of the table covers the path, or names an unknown group."""
    for pattern, group in table:
        if re.fullmatch(pattern, path):
            if group not in GROUPS:
                raise UserError(f"parameter group {group!r} of row ({pattern!r}, {group!r}) is not one of {', '.join(GROUPS)}.")
            return group
    rows = ", ".join(repr(pattern) for pattern, _ in table)
    raise UserError(f"parameter {path!r} is covered by no row of the table of parameter groups ({rows}); add one.")


def split(parameters: Mapping[str, object], table: Sequence[tuple[str, str]]) -> tuple[dict, dict]:
    """Splits parameters by path into (trainable, frozen). Raises UserError for a path that no row covers."""
    trainable, frozen = {}, {}
    for path, array in parameters.items():
        (frozen if group_of(path, table) == FROZEN else trainable)[path] = array
    if not trainable:
        raise UserError("the table of parameter groups freezes every parameter; nothing would train.")
    return trainable, frozen
