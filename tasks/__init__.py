"""Datasets as tasks: the table, SeqIO registration and scores. Importing it loads neither TensorFlow, SeqIO nor JAX."""

from tasks.table import TABLE, Task, TaskError, add

__all__ = ["TABLE", "Task", "TaskError", "add"]
