"""The base of every error that a user can mend."""


class OnceclipError(Exception):
    """A failure that the user can mend: one line that says what, where and how."""
