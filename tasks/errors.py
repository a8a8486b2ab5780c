"""The one error of this package."""


class TaskError(ValueError):
    """Wrong input to a task; the text names the place, the value, the limit and what to change."""
