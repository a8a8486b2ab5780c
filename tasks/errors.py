"""The one error of this package."""


class TaskError(ValueError):
    """Wrong input to a task; the text names the place, the value, the limit and what to change, in one line that a terminal can show."""

    def __init__(self, message: str):
        super().__init__("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message))
