"""Where images come from: every source gives one record per image."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from importlib import import_module

from onceclip.pipeline.errors import SourceError
from onceclip.pipeline.files import LocalFile, Pixels, RemoteFile
from onceclip.pipeline.sources.record import Content, Listing, Record, SourceOptions, class_names, natural_order
from onceclip.pipeline.words import alike, counted

__all__ = ["Content", "Listing", "LocalFile", "Pixels", "Record", "RemoteFile", "SourceOptions", "class_names",
           "natural_order", "open_source"]

# Each is a module here with `recognises`, `list_source` and `USES`, the names of the options it takes; the first that
# recognises a text lists it.
SOURCES = ("file_list", "torchvision_sets", "folder", "archives", "manifest", "coop", "plugin")
_FALLBACK = "folder"
DEFAULTS = SourceOptions()
_OPTIONS = {"root": "--root", "every": "--every", "frames": "--frames", "download": "--download"}
_NAMED = 4


def open_source(text: str, options: SourceOptions = DEFAULTS) -> Listing:
    """List the images of a source, in the order of their rows.

    text: a folder or its URL, a manifest (.csv, .tsv, .jsonl), CoOp's split file (.json), tar archives, `-` for a list
    of files on standard input, `torchvision:NAME`, or `module:function`.
    Raises SourceError if it cannot be read, has no images, or two images have one key.
    """
    from onceclip.pipeline.sources.videos import with_frames  # names that other processes import stay light

    modules = [import_module(f"{__name__}.{name}") for name in SOURCES]
    source = next((module for module in modules if module.recognises(text)), modules[SOURCES.index(_FALLBACK)])
    for name, option in _OPTIONS.items():
        if getattr(options, name) and name not in source.USES:
            raise SourceError(f"{option} says nothing to the source {text}: leave it out")
    found = with_frames(source.list_source(text, options), options)
    if not found.records:
        raise SourceError(f"{text} has no images: {'; '.join(found.remarks) or 'give another source'}")
    doubled = [key for key, count in Counter(record.key for record in found.records).items() if count > 1]
    if doubled:
        raise SourceError(f"{text} has several images of the key {doubled[0]!r}: give them names of their own")
    if options.unlabelled:
        return Listing([replace(record, label=None) for record in found.records], found.remarks)
    return Listing(found.records, [*found.remarks, *_remarks(found.records)])


def _remarks(records: list[Record]) -> list[str]:
    """What is odd about classes and groups."""
    remarks = []
    bare = [record.key for record in records if record.label is None]
    if bare and len(bare) < len(records):
        names = ", ".join(bare[:_NAMED]) + (" ..." if len(bare) > _NAMED else "")
        remarks.append(f"{len(bare)} of {len(records)} images stored without a class: {names}")
    splits = defaultdict(set)
    for record in records:
        if record.group and record.split and record.label is not None:
            splits[record.group].add(record.split)
    cut = {group: " and ".join(sorted(found, key=("train", "val", "test").index)) for group, found in splits.items()
           if len(found) > 1}
    if cut:
        names = ", ".join(f"{group!r} ({found})" for group, found in list(cut.items())[:_NAMED])
        more = " ..." if len(cut) > _NAMED else ""
        remarks.append(f"{counted(len(cut), 'group')} in several splits: {names}{more}; where shots are drawn, "
                       "images whose group stands in a later split are left out")
    return [*remarks, *alike(class_names(records))]
