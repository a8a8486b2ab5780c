"""``import tasks``: the old name of mpt_jax.tasks. A user's own tasks.py comes before it, and nothing of the package goes by this name."""

import sys

from mpt_jax import tasks

sys.modules[__name__] = tasks
