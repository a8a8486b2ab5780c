"""Errors that a user can cause and mend; the command prints them without a traceback."""


class UserError(ValueError):
    """Bad input: the message names the value, the limit and the setting to change."""
