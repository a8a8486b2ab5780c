"""Datasets as tasks: the table, SeqIO registration, scores. Importing loads no TensorFlow, SeqIO or JAX."""

from mpt_jax.tasks import embedded, paper  # add the quickstart's and the paper's tasks to the table
from mpt_jax.tasks.description import describe
from mpt_jax.tasks.files import csv, jsonl, tsv
from mpt_jax.tasks.outline import outline, scored_by, stand_in
from mpt_jax.tasks.registration import check_one_meaning, examples, expand, fields_as_json, import_module, register
from mpt_jax.tasks.rendering import inputs_text, ready_text
from mpt_jax.tasks.scores import Score, add_score
from mpt_jax.tasks.scoring import main_score, scorer
from mpt_jax.tasks.seqio_tasks import ROW_FIELD, row_of_example
from mpt_jax.tasks.sources import ingredients, rows
from mpt_jax.tasks.table import MIXTURES, NAME, TABLE, Task, TaskError, UnknownTask, add, add_mixture, check_text

__all__ = [
    "MIXTURES",
    "NAME",
    "ROW_FIELD",
    "Score",
    "TABLE",
    "Task",
    "TaskError",
    "UnknownTask",
    "add",
    "add_mixture",
    "add_score",
    "check_one_meaning",
    "check_text",
    "csv",
    "describe",
    "embedded",
    "examples",
    "expand",
    "fields_as_json",
    "import_module",
    "ingredients",
    "inputs_text",
    "jsonl",
    "main_score",
    "outline",
    "paper",
    "ready_text",
    "register",
    "row_of_example",
    "rows",
    "scored_by",
    "scorer",
    "stand_in",
    "tsv",
]
