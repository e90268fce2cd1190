"""Whether a store has all that an extraction asks for: told without loading the encoder."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from onceclip.pipeline.encoders import DEMO, EncoderSpec
from onceclip.pipeline.encoders.spec import OPEN_CLIP_SOURCES, TRANSFORMERS, is_plugin
from onceclip.pipeline.extraction.inventory import Inventory
from onceclip.pipeline.extraction.outputs import PREPROJ, STATISTICS, STATISTICS_SPEC, TOKEN, VIEW, OutputOptions
from onceclip.pipeline.extraction.splits import drawing_of
from onceclip.pipeline.extraction.survey import ExtractOptions, Survey
from onceclip.pipeline.prompts.embedding import present_prompts
from onceclip.pipeline.workers.devices import AUTO, CPU, may_have_gpu
from onceclip.stores import Store
from onceclip.stores.identity import fingerprint

REQUEST = "request"  # the attribute of a store that says by which words its encoder was named
_LOCAL = (OPEN_CLIP_SOURCES[1], TRANSFORMERS)
_SILENT = ("cache_dir", "compile", "device")  # what an encoder's identity does not depend on, or not by these words


def request_of(encoder: EncoderSpec) -> str | None:
    """Identity of what a user said of an encoder: equal ones load equal encoders.

    Files count by their content wherever they lie, names of models and weights as they are. None for a function of the
    user's own, of which only its result says what it is.
    """
    if is_plugin(encoder.model):
        return None
    said: dict[str, Any] = {name: value for name, value in asdict(encoder).items() if name not in _SILENT}
    for name, path in (("model", _folder_of(encoder.model)), ("pretrained", encoder.pretrained),
                       ("preprocess", encoder.preprocess)):
        if path and (Path(path).is_dir() if name == "model" else Path(path).is_file()):
            said[name] = [encoder.model.partition(":")[0] if name == "model" else "", _digest(Path(path))]
    auto = AUTO if may_have_gpu() else CPU
    return fingerprint({**said, "device": auto if encoder.device == AUTO else encoder.device.partition(":")[0]})


def _folder_of(model: str) -> str | None:
    """Where the files of a model are, if on this machine and known without a library."""
    if model == DEMO:
        return str(files("onceclip.pipeline.encoders") / "demo_model")
    return next((model.removeprefix(each) for each in _LOCAL if model.startswith(each)), None)


def _digest(path: Path) -> list[list[str]]:
    """Names and digests of the files in a folder, or of one file."""
    found = []
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as content:
            found.append([str(file.relative_to(path)), hashlib.file_digest(content, "blake2b").hexdigest()])
    return found


def nothing_to_do(store: Store, found: Survey, inventory: Inventory, options: ExtractOptions) -> dict[str, Any] | None:
    """What there is to say of the text of a store that has all that is asked for; None if there is something to do.

    Raises SourceError if splits are asked for that the store's images do not have.
    """
    if not store.complete or inventory.changed or tuple(found.classes) != store.classes:
        return None
    if not found.has_splits:
        drawing_of(store, found)
    if not _has_outputs(store, options.outputs):
        return None
    if not found.classes:
        return {"prompts": 0, "encoded": 0}
    return present_prompts(store, found.classes, options.phrases, options.templates)


def _has_outputs(store: Store, options: OutputOptions) -> bool:
    """Whether a store has, of the outputs that are asked for, just those."""
    wanted: dict[str, Any] = {}
    if options.views:
        wanted[VIEW] = {**options.views.spec(), "splits": options.splits_with_views}
    if options.preproj:
        wanted[PREPROJ] = store.outputs[PREPROJ].spec if PREPROJ in store.outputs else None
    if options.tokens:
        wanted[TOKEN] = {"tokens": options.tokens}
    if options.layer_statistics:
        wanted[STATISTICS] = STATISTICS_SPEC
    return all(name in store.outputs and store.outputs[name].spec == spec for name, spec in wanted.items())
