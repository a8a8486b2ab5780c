"""Datasets as tasks: the table, SeqIO registration, scores. Importing loads no TensorFlow, SeqIO or JAX."""

from tasks import embedded  # adds the quickstart's tasks to the table
from tasks.description import describe
from tasks.files import csv, jsonl, tsv
from tasks.registration import examples, expand, import_module, register
from tasks.rendering import inputs_text
from tasks.scoring import main_score, scorer
from tasks.seqio_tasks import ROW_FIELD, row_of_example
from tasks.sources import ingredients, rows
from tasks.table import TABLE, Task, TaskError, add

__all__ = [
    "ROW_FIELD",
    "TABLE",
    "Task",
    "TaskError",
    "add",
    "csv",
    "describe",
    "embedded",
    "examples",
    "expand",
    "import_module",
    "ingredients",
    "inputs_text",
    "jsonl",
    "main_score",
    "register",
    "row_of_example",
    "rows",
    "scorer",
    "tsv",
]
