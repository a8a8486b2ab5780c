"""The same model under T5X's own trainer, evaluator and launchers. Only this package imports t5x; docs/t5x.md tells how to use it.

`python -m mpt_jax.t5x_bridge` prints the folder in which T5X finds the files of gin/t5x (its --gin_search_paths). Importing anything
from here raises an ImportError that says how to get T5X where it is missing.
"""

import importlib.util

NEEDED = ("t5x", "airio", "jestimator", "fiddle", "cached_property")
_missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f"T5X cannot be used: {', '.join(_missing)} cannot be imported. It is on no package index; install it with "
        "`pip install fiddle cached_property tensorboard` and `pip install --no-deps git+https://github.com/google-research/t5x@cc342d4 "
        "git+https://github.com/google/airio git+https://github.com/google-research/jestimator` (docs/t5x.md). Everything else "
        "of mpt_jax works without it.",
        name=__name__,
    )
