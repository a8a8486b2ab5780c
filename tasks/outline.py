"""What a token cache keeps of its task, so that the cache is of use where nobody registers the task."""

from mpt_jax.tasks import seqio_tasks
from mpt_jax.tasks.errors import TaskError
from mpt_jax.tasks.table import TABLE, Task

# fields of a Task that scores and templates need; an ordinary SeqIO task has functions, which a cache cannot keep
KEPT = ("template", "target", "labels", "score", "references", "tokens", "description")
TEXT_SCORE = "exact_match"  # of a SeqIO task whose metric functions are not there


def outline(name: str) -> dict:
    """What to keep of a task of the table or of SeqIO, as JSON-able values."""
    task = TABLE.get(name)
    if task is not None:
        return {key: getattr(task, key) for key in KEPT}
    if name not in seqio_tasks.names()[0]:
        return {"score": TEXT_SCORE}
    functions = seqio_tasks.get(name).predict_metric_fns
    metrics = ", ".join(getattr(function, "__name__", type(function).__name__) for function in functions)
    return {"score": TEXT_SCORE, "description": f"SeqIO task; its own scores: {metrics or 'none'}"}


def scored_by(name: str) -> str:
    """What judges the answers to a task, in a line: another one where the same answers would get other scores."""
    task = TABLE.get(name)
    if task is None:
        return outline(name).get("description", TEXT_SCORE)
    labels = [f"labels {', '.join(task.labels)}"] if task.labels else []
    references = [f"right answers in {task.references!r}"] if task.references else []
    return "; ".join([", ".join(task.scores), *labels, *references])


def stand_in(name: str, split: str, outlined: object) -> Task:
    """The task that a token cache's outline describes, without rows. Raises TaskError for an outline that is not one."""
    given = {key: outlined[key] for key in KEPT if key in outlined} if isinstance(outlined, dict) else {}
    try:
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        return Task(name=name, kind="cached", splits=(split,), **{"score": TEXT_SCORE, **fields})
    except (TypeError, AttributeError) as error:
        raise TaskError(f"task {name!r}: its token cache describes no task ({error}): write the cache anew") from error
