"""python -m mpt_jax: the command mpt-jax."""

import sys

from mpt_jax.main import main

sys.exit(main())
