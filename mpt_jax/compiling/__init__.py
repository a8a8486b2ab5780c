"""The command ``mpt-jax compile``: the steps of a stage, compiled from shapes alone for devices that are not there."""
