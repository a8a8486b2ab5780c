"""The error of this package, and what a name that nobody registered raises."""

SHOWN = 1200, 400  # letters of a message that are kept, at its start and at its end: a field of a file may be of any length [ours]


class TaskError(ValueError):
    """Wrong input to a task; the text names the source, the value, the limit and what to change, in one line that a terminal can show.

    >>> try:
    ...     tasks.jsonl("mood", files={"train": "mood_train.jsonl"}, template="review: {text}")
    ... except tasks.TaskError as error:
    ...     print(error)
    task 'mood': give `labels` (a list of words) or `target` (a template)
    """

    def __init__(self, message: str):
        text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message)
        start, end = SHOWN
        super().__init__(text if len(text) <= start + end else f"{text[:start]} … {text[-end:]}")


class UnknownTask(TaskError):
    """A name that is no task or mixture here."""
