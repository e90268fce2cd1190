"""A folder for others, behind a URL: on Hugging Face's hub as one commit."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onceclip.adapters import Classifier
from onceclip.adapters.saving import CARD, CONFIG, WEIGHTS, file_of, read_configuration
from onceclip.pipeline.errors import ExportError
from onceclip.pipeline.files import is_url, remote_folder
from onceclip.pipeline.words import counted
from onceclip.stores.location import local_copy, reason_of
from onceclip.stores.storage import occupied

HUB, FOLDER = "hf://", "folder"
_PLACE = re.compile(r"hf://(?P<kind>datasets/|models/)?(?P<name>(?!spaces/|buckets/|kernels/)[\w.-]+/[\w.-]+)"
                    r"(?:@(?P<revision>[\w.-]+))?(?:/(?P<path>.*))?")
_THEIRS = (".gitattributes", CARD)  # what a new repository has


@dataclass(frozen=True)
class Published:
    """What was uploaded. card: whether the README.md is ours; else there was one, which stays."""

    url: str
    files: int
    bytes: int
    card: bool


def publish(folder: Path, url: str, last: Sequence[str] = ()) -> Published:
    """Upload the files of a folder, once it is whole, to a URL that holds nothing yet.

    On the hub it is one commit, to a repository that is made if there is none; elsewhere files appear one by one,
    those of `last` behind the others, without which readers take the folder for none.
    Raises ExportError if something is there, the URL cannot be written, or an upload fails: then nothing that could be
    opened is there, and the same call does it anew.
    """
    if not is_url(url):
        raise ExportError(f"{url} is no URL: give hf://ORG/NAME, hf://datasets/ORG/NAME or s3://BUCKET/NAME")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    card = _to_hub(folder, url) if url.startswith(HUB) else _elsewhere(folder, files, url, last)
    return Published(url, len(files) - (not card), sum(path.stat().st_size for path in files), card)


def publish_adapter(adapter: str | Path | Classifier, url: str) -> Published:
    """Upload a saved adapter, or one as it would be saved, to a URL; its card goes with it.

    adapter: a classifier, or the folder of a saved one or its URL.
    Raises AdapterFileError if the folder holds none, ExportError as `publish`.
    """
    with TemporaryDirectory(prefix="onceclip-") as folder:
        copy = Path(folder, "adapter")
        if isinstance(adapter, Classifier):
            adapter.save(copy)
        else:
            copy.mkdir()
            with local_copy(os.fspath(adapter)) as source:
                read_configuration(source)  # is it whole?
                for name in (WEIGHTS, CARD, CONFIG):
                    if (file := file_of(source, name)).is_file():
                        shutil.copy(file, copy / name)
            read_configuration(copy)
        return publish(copy, url, last=(CONFIG,))


def require_free(url: str) -> None:
    """Raise ExportError if something stands at a URL already, before work is done for it."""
    if url.startswith(HUB):
        _Repository(url).require_free()
    elif occupied(url):
        raise ExportError(f"{url} exists already: give another URL, or delete it first")


class _Repository:
    """A place on the hub, and the client that reaches it."""

    def __init__(self, url: str) -> None:
        found = _PLACE.fullmatch(url.rstrip("/"))
        if found is None:
            raise ExportError(f"{url} names no repository: give hf://datasets/ORG/NAME for a store, hf://ORG/NAME for "
                              "an adapter, and a folder in it behind a / if you like")
        self.url, self.path = url, found["path"] or ""
        self.where: dict[str, Any] = {"repo_id": found["name"],
                                      "repo_type": "dataset" if found["kind"] == "datasets/" else "model"}
        self.revision = found["revision"]
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise ExportError(reason_of(url, error)) from error
        self.client = HfApi()

    def require_free(self) -> set[str]:
        """Names of the files at the place, which may stay. Raises ExportError if there are others."""
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

        try:
            tree = list(self.client.list_repo_tree(**self.where, path_in_repo=self.path or None, recursive=True,
                                                   revision=self.revision))
        except (RepositoryNotFoundError, EntryNotFoundError):
            return set()
        except Exception as error:  # many types of the client and of those below it
            raise ExportError(reason_of(self.url, error)) from error
        present = {os.path.relpath(each.path, self.path or ".") for each in tree if hasattr(each, "size")}
        if present - {*_THEIRS}:
            raise ExportError(f"{self.url} holds {counted(len(present), 'file')} already, such as {min(present)}: give "
                              "another path in the repository or another repository, or delete them first")
        return present


def _to_hub(folder: Path, url: str) -> bool:
    """Upload a folder as one commit; gives whether its card went with it."""
    place = _Repository(url)
    card = CARD not in place.require_free()
    try:
        with _bars_on_terminals():
            place.client.create_repo(**place.where, exist_ok=True)
            place.client.upload_folder(**place.where, folder_path=folder, path_in_repo=place.path or None,
                                       revision=place.revision, commit_message="Upload with onceclip",
                                       ignore_patterns=None if card else [CARD])
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ExportError(reason_of(url, cause)) from error
    type(remote_folder(url)[0]).clear_instance_cache()  # clients of this process remember that nothing was there
    remote_folder.cache_clear()
    return card


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Leave the client's progress bars out where nobody looks at them."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = not are_progress_bars_disabled() and not sys.stderr.isatty()
    if hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        if hidden:
            enable_progress_bars()


def _elsewhere(folder: Path, files: Sequence[Path], url: str, last: Sequence[str]) -> bool:
    require_free(url)
    try:
        target, base = remote_folder(url)
        for path in sorted(files, key=lambda path: (path.name in last, path)):
            target.put_file(os.fspath(path), f"{base.rstrip('/')}/{path.relative_to(folder).as_posix()}")
    except Exception as error:
        raise ExportError(reason_of(url, error)) from error
    return True
