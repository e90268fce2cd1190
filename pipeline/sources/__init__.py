"""Where images come from: every source gives one record per image."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

from onceclip.adapters.plugin import import_function
from onceclip.errors import OnceclipError, failure_of, one_line
from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.files import LocalFile, Pixels, RemoteFile
from onceclip.pipeline.sources.archives import Archives
from onceclip.pipeline.sources.coop import CoopSplit
from onceclip.pipeline.sources.folder import Folder
from onceclip.pipeline.sources.image_tables import ImageTable
from onceclip.pipeline.sources.manifest import FileList, Manifest
from onceclip.pipeline.sources.record import (
    Content,
    Listing,
    Record,
    Source,
    SourceOptions,
    class_names,
    natural_order,
)
from onceclip.pipeline.sources.torchvision_sets import TorchvisionSet
from onceclip.pipeline.sources.videos import with_frames
from onceclip.pipeline.words import counted, listing
from onceclip.stores.identity import line_of
from onceclip.stores.schema import SPLITS

__all__ = [
    "SOURCES",
    "Content",
    "Listing",
    "LocalFile",
    "Pixels",
    "Record",
    "RemoteFile",
    "Source",
    "SourceOptions",
    "class_names",
    "natural_order",
    "open_source",
    "source_of",
]


class OwnFunction(Source):
    """A function that gives records."""

    name = "function of your own"
    takes = frozenset({"root", "every", "frames"})

    @staticmethod
    def recognises(text: str) -> bool:
        return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", text) is not None

    @staticmethod
    def list(text: str, options: SourceOptions) -> Listing:
        """List the records that a function gives for the root.

        Raises SourceError if there is no such function, or it gives something else.
        """
        give, _ = import_function(text, SourceError)
        try:
            records = list(give(options.root))
        except OnceclipError:
            raise
        except Exception as error:  # a user's code may raise anything
            raise SourceError(f"{text} failed ({failure_of(error)}): it must take the root, and give records"
                              ) from error
        other = next((each for each in records if not isinstance(each, Record)), None)
        if other is not None or not records:
            what = "no record" if other is None else f"a {type(other).__name__}"
            raise SourceError(f"{text} gave {what}: it must give onceclip.Record, one per image")
        for each in records:
            if not (isinstance(each.key, str) and isinstance(each.label, str | None) and each.label != ""
                    and isinstance(each.group, str) and each.split in (None, *SPLITS)):
                raise SourceError(f"{text} gave a record of key {each.key!r}, label {each.label!r}, split "
                                  f"{each.split!r} and group {each.group!r}: give text, and train, val, test or None "
                                  "as the split")
            if not callable(getattr(each.content, "read", None)):
                raise SourceError(f"{text} gave the content {each.content!r:.60} for {each.key}, which has no `read`: "
                                  "give LocalFile(path) of onceclip.pipeline.sources, say")
        _require_sendable(text, records[0].content)
        return Listing([replace(each, key=line_of(each.key), label=each.label and line_of(each.label),
                                group=line_of(each.group)) for each in records])


def _require_sendable(text: str, content: Content) -> None:
    """Raise SourceError for what the processes that decode images cannot be sent."""
    try:
        if getattr(content, "reading", "disk") != "process":
            ForkingPickler.dumps(content)
    except Exception as error:  # pickle refuses by errors of many types
        raise SourceError(f"{text}: its contents cannot be sent to the processes that decode images ({one_line(error)}"
                          "): give objects of a class at the top level of a module, without open files, or with "
                          'reading = "process"') from error


# The first that recognises a text lists it.
SOURCES: tuple[type[Source], ...] = (FileList, TorchvisionSet, ImageTable, Folder, Archives, Manifest, CoopSplit,
                                     OwnFunction)
DEFAULTS = SourceOptions()
_OPTIONS = {"root": "--root", "every": "--every", "frames": "--frames", "download": "--download",
            "columns": "--column"}
_NAMED = 4


def source_of(text: str) -> type[Source] | None:
    """The kind of source that a text is, if it looks like one."""
    return next((source for source in SOURCES if source.recognises(text)), None)


def open_source(text: str, options: SourceOptions = DEFAULTS) -> Listing:
    """List the images of a source, in the order of their rows.

    text: a folder or its URL, a manifest (.csv, .tsv, .jsonl), CoOp's split file (.json), tar archives, `-` for a list
    of files on standard input, `torchvision:NAME`, `hf-dataset:FOLDER|NAME`, `parquet:FILES`, or `module:function`.
    Raises SourceError if it cannot be read, has no images, two images have one key, or one with a class has no split
    though others have.
    """
    source = source_of(text) or Folder
    for name, option in _OPTIONS.items():
        if getattr(options, name) and name not in source.takes:
            raise SourceError(f"{option} says nothing to the source {text} ({source.name}): leave it out")
    found = with_frames(source.list(text, options), options)
    if not found.records:
        raise SourceError(f"{text} has no images: {'; '.join(found.remarks) or 'give another source'}")
    doubled = [key for key, count in Counter(record.key for record in found.records).items() if count > 1]
    if doubled:
        raise SourceError(f"{text} has several images of the key {doubled[0]!r}: give them names of their own")
    if options.unlabelled:
        return Listing([replace(record, label=None) for record in found.records], found.remarks)
    if any(record.split for record in found.records):
        lost = next((record.key for record in found.records if record.label is not None and not record.split), None)
        if lost is not None:
            raise SourceError(f"{text}: {lost} has no split, though others have: give all images one, or none")
    return Listing(found.records, [*found.remarks, *_remarks(found.records)])


def _remarks(records: list[Record]) -> list[str]:
    """What is odd about labels and groups."""
    remarks = []
    bare = [record.key for record in records if record.label is None]
    if bare and len(bare) < len(records):
        remarks.append(f"{len(bare)} of {len(records)} images stored without a class: {listing(bare, _NAMED)}")
    splits = defaultdict(set)
    for record in records:
        if record.group and record.split and record.label is not None:
            splits[record.group].add(record.split)
    cut = [f"{group!r} ({' and '.join(sorted(found, key=SPLITS.index))})"
           for group, found in splits.items() if len(found) > 1]
    if cut:
        remarks.append(f"{counted(len(cut), 'group')} in several splits: {listing(cut, _NAMED)}; where shots are "
                       "drawn, images whose group stands in a later split are left out")
    return remarks
