"""A source of one's own: `module:function`, where the function gives records."""

from __future__ import annotations

import importlib
import os
import re
import sys

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.sources.record import Listing, Record, Source, SourceOptions


class OwnFunction(Source):
    """A function that gives records."""

    name = "function of your own"
    takes = frozenset({"root", "every", "frames"})

    @staticmethod
    def recognises(text: str) -> bool:
        """Whether a source is the name of a function."""
        return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", text) is not None

    @staticmethod
    def list(text: str, options: SourceOptions) -> Listing:
        """List the records that a function gives for the root.

        Raises SourceError if there is no such function, or it gives something else.
        """
        module, _, name = text.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as `python -m` does
        try:
            function = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise SourceError(f"{text}: {error}: give a function as module:function, with the module in this folder or "
                              "installed") from error
        records = list(function(options.root))
        other = next((each for each in records if not isinstance(each, Record)), None)
        if other is not None or not records:
            what = "no record" if other is None else f"a {type(other).__name__}"
            raise SourceError(f"{text} gave {what}: it must give onceclip.pipeline.sources.Record, one per image")
        return Listing(records)
