"""Task module of the study's commands (MIXTURE_OR_TASK_MODULE): training and dev rows in the folder STUDY_DIR names."""

import os
from pathlib import Path

from benchmarks.study.data import register

register(Path(os.environ.get("STUDY_DIR", "study")) / "data")
