"""The base of every error that a user can mend."""


class OnceclipError(Exception):
    """A failure that the user can mend: one line that says what, where and how."""

    def __str__(self) -> str:
        """The line, also where it quotes a text of several, such as a library's message."""
        return " ".join(super().__str__().splitlines())
