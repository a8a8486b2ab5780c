"""Launchers: start the command ``mpt-jax`` on TPU VMs, Slurm, Kubernetes or several processes of this machine.

Standard library only; nothing here imports JAX.
"""
