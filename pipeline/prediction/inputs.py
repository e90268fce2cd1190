"""The images that are to be labelled: files, folders and other sources, one after the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onceclip.pipeline.errors import NoImages, PredictionError
from onceclip.pipeline.files import IMAGES, VIDEOS, file_at, is_url, key_of, local_path, suffix
from onceclip.pipeline.sources import DEFAULTS, Listing, Record, SourceOptions, open_source, source_of
from onceclip.pipeline.sources.folder import hidden
from onceclip.pipeline.sources.videos import with_frames
from onceclip.pipeline.words import counted
from onceclip.pipeline.words import listing as names
from onceclip.stores import NotAStore, Store, open_store
from onceclip.stores.identity import encode_key
from onceclip.stores.location import looks_like_store


def list_inputs(inputs: Sequence[str | Path], options: SourceOptions = DEFAULTS) -> Listing:
    """List the images of all inputs in the order given; their classes, where a source has some, are left out.

    inputs: image or video files, or what `open_source` lists. A file is called as it was given, an image of a source as
    the source calls it; where there are several inputs, the images of a folder have that before their name. A file
    with an image's ending that is not there is listed too.
    Raises SourceError if a source cannot be listed, PredictionError for what is not there or has no images.
    """
    options = replace(options, unlabelled=True)
    records: list[Record] = []
    remarks: list[str] = []
    for text in map(str, inputs):
        listing = _file(text, options) if _is_file(text) else _listed(text, options)
        folder = len(inputs) > 1 and _folder(text)
        records += ([replace(record, key=f"{folder}{record.key}") for record in listing.records] if folder
                    else listing.records)
        remarks += listing.remarks
    return Listing(records, remarks)


def store_among(inputs: Sequence[str]) -> Store | None:
    """The store that is to be labelled, or None where the inputs are images.

    Raises PredictionError for a store beside other inputs.
    """
    if len(inputs) == 1:
        return _store_at(inputs[0])
    for text in inputs:
        if suffix(text) not in IMAGES | VIDEOS and not is_url(text) and looks_like_store(text):
            raise PredictionError(f"{text} is a store among {len(inputs)} inputs: label it alone")
    return None


def _store_at(text: str) -> Store | None:
    if not looks_like_store(text):
        return None
    if not is_url(text):
        return open_store(text)
    if _is_file(text) or source_of(text):
        return None
    try:
        return open_store(text)
    except NotAStore:
        if suffix(text) == ".zarr":
            raise
        return None


def _is_file(text: str) -> bool:
    """Whether an input is one file, which need not be there, rather than a source of several."""
    if suffix(text) in IMAGES | VIDEOS:
        return not os.path.isdir(local_path(text))
    if is_url(text) or source_of(text):
        return False
    if not os.path.lexists(local_path(text)):
        raise PredictionError(f"{text} does not exist: give images, a folder of images or a store")
    return True


def _listed(text: str, options: SourceOptions) -> Listing:
    """A source; of a folder on this machine also how many of its files are no images."""
    folder = local_path(text)
    others = [] if is_url(text) or not os.path.isdir(folder) else _others(folder)
    try:
        listing = open_source(text, options)
    except NoImages as error:
        what = f"has no images ({counted(len(others), 'other file')})" if others else "is empty"
        endings = f"; they end in {', '.join(sorted(IMAGES))}" if others else ""
        raise PredictionError(f"{text} {what}: give images, or a folder that has some{endings}") from error
    if not others:
        return listing
    remark = f"{text}: {counted(len(others), 'other file')} passed over, not images by their endings: {names(others)}"
    return replace(listing, remarks=[*listing.remarks, remark])


def _others(folder: str) -> list[str]:
    """Names of the files in a folder that are neither images nor videos."""
    found = []
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not hidden(name)]
        found += [encode_key(name) for name in files if suffix(name) not in IMAGES | VIDEOS and not hidden(name)]
    return sorted(found)


def _file(text: str, options: SourceOptions) -> Listing:
    if options.root:
        raise PredictionError(f"--root is what the paths of a manifest or a list are relative to, and {text} is a "
                              "file: leave it out")
    key = key_of(text) if is_url(text) else encode_key(text)
    listing = Listing([Record(key, file_at("", text))])
    return with_frames(listing, options) if suffix(text) in VIDEOS else listing


def _folder(text: str) -> str:
    """A folder as it stands before the names of its images; empty for other sources."""
    if is_url(text):
        return "" if suffix(text) else f"{key_of(text.rstrip('/'))}/"
    return f"{encode_key(text.rstrip('/'))}/" if os.path.isdir(local_path(text)) else ""
