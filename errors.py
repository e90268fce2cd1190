"""The base of every error that a user can mend."""

import os
import sys
from traceback import walk_tb

_LIBRARIES = {__name__.partition(".")[0], *sys.stdlib_module_names}


class OnceclipError(Exception):
    """A failure that the user can mend: one line that says what, where and how."""

    def __str__(self) -> str:
        """The line, also where it quotes a text of several, such as a library's message."""
        return " ".join(super().__str__().splitlines())


def one_line(error: BaseException) -> str:
    """What an exception says, as one line of at most 200 characters; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def failure_of(error: Exception) -> str:
    """One line on a failure in a user's code: what, and the last line of their own files that led to it."""
    text = (str(error).strip().splitlines() or [""])[0]
    lines = [(frame.f_code.co_filename, number) for frame, number in walk_tb(error.__traceback__)
             if frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES]
    own = [each for each in lines if "site-packages" not in each[0]] or lines
    where = f" in {os.path.basename(own[-1][0])}:{own[-1][1]}" if own and not own[-1][0].startswith("<") else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"
