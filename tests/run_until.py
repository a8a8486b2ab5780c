"""Run as a program: a command of mpt-jax that is asked to end at a step, as by SIGTERM: python run_until.py STEP COMMAND …"""

import sys

from mpt_jax import distributed
from mpt_jax.main import main

LAST = int(sys.argv[1])


def reached(preemption: distributed.Preemption, step: int) -> bool:
    return step == LAST


distributed.Preemption.reached = reached
sys.exit(main(sys.argv[2:]))
