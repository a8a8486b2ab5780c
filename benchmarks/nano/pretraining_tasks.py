"""Registers the nano backbone's pretraining data as tasks: name this module in MIXTURE_OR_TASK_MODULE.

The folder that `python -m benchmarks.nano.pretraining --output DIR` wrote is found by the environment variable NANO_DATA.
"""

from benchmarks.nano.registration import data_folder, register

NAMES = register(data_folder())
