"""The base of every error that a user can mend."""

import os
import traceback


class OnceclipError(Exception):
    """A failure that the user can mend: one line that says what, where and how."""

    def __str__(self) -> str:
        """The line, also where it quotes a text of several, such as a library's message."""
        return " ".join(super().__str__().splitlines())


def one_line(error: BaseException) -> str:
    """What an exception says, as one line of at most 200 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def failure_of(error: Exception) -> str:
    """One line on a failure in a user's code: what, and where."""
    text = (str(error).strip().splitlines() or [""])[0]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if frame.filename.startswith("<") else f" in {os.path.basename(frame.filename)}:{frame.lineno}"
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"
