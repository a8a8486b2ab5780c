"""Datasets as tasks: the table, SeqIO registration, scores. Importing loads no TensorFlow, SeqIO or JAX."""

from tasks import embedded, paper  # add the quickstart's and the paper's tasks to the table
from tasks.description import describe
from tasks.files import csv, jsonl, tsv
from tasks.registration import examples, expand, import_module, register
from tasks.rendering import inputs_text
from tasks.scoring import main_score, scorer
from tasks.seqio_tasks import ROW_FIELD, row_of_example
from tasks.sources import ingredients, rows
from tasks.table import MIXTURES, TABLE, Task, TaskError, add, add_mixture

__all__ = [
    "MIXTURES",
    "ROW_FIELD",
    "TABLE",
    "Task",
    "TaskError",
    "add",
    "add_mixture",
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
    "paper",
    "register",
    "row_of_example",
    "rows",
    "scorer",
    "tsv",
]
