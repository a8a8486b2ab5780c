"""A request that is not answered, with its status."""

from collections.abc import Mapping


class Refused(RuntimeError):
    """status: HTTP's; the message names the limit or what was expected."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
