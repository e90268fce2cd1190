"""Writing an adapter for other programs, and comparing what the file says with what onceclip says."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onceclip.adapters import Classifier
from onceclip.adapters.errors import unknown
from onceclip.adapters.heads import ConditionalPrompts
from onceclip.adapters.heads.packing import parts_of
from onceclip.pipeline.decoding.preparation import Preparation, decoding
from onceclip.pipeline.encoders import Encoder
from onceclip.pipeline.errors import BadImage, ExportError
from onceclip.pipeline.export import preprocess
from onceclip.pipeline.export.linear_file import LinearFile
from onceclip.pipeline.export.model import Format, Subject
from onceclip.pipeline.export.onnx_file import OnnxFile
from onceclip.pipeline.export.torch_program import TorchProgram
from onceclip.pipeline.sources.folder import list_images
from onceclip.pipeline.tasks.tasks import check_encoder, inputs_of
from onceclip.stores import open_store
from onceclip.stores.location import whole_file

FORMATS: dict[str, type[Format]] = {each.name: each for each in (LinearFile, TorchProgram, OnnxFile)}
_TOLERANCE = 1e-4
_ROUNDINGS = 16 * float(torch.finfo(torch.float32).eps)  # of the largest logit, where that is more
_OWN_ROUNDINGS = 4.0  # times what onceclip's own logits are off
_ROWS, _IMAGES = 64, 4


@dataclass(frozen=True)
class Exported:
    """A written file.

    size: in bytes. rows: how many were compared. difference: the largest one, of a logit or a probability, between the
    file's answers and onceclip's. preprocess: the script beside it that makes pixels of image files; None where
    embeddings go in, or the encoder has a preprocessing of its own.
    """

    file: Path
    format: str
    size: int
    rows: int
    difference: float
    preprocess: Path | None = None


def export(classifier: Classifier, format: str, file: str | Path, encoder: Encoder | None = None,
           check: np.ndarray | Tensor | None = None) -> Exported:
    """Write an adapter for other programs, once its content was run and gives the same answers.

    format: "safetensors" (one linear map), "torch" (a program of torch.export) or "onnx". encoder: goes into the file
    too, so that pixels go in instead of embeddings. check: rows to compare on, raw embeddings (rows, dim) or pixels
    (rows, 3, height, width) from 0 to 1; random ones by default.
    Raises ExportError if the format cannot hold the adapter, a package is missing, or the answers differ by more than
    1e-4 (or 16 roundings of the largest logit, or four times by what onceclip's own logits are off) or in a class that
    is no tie.

    Example:
        >>> made = onceclip.export(onceclip.adapters.TipAdapter().fit(task), "torch", "pets.pt2")
        >>> made.rows, made.difference < 1e-4
        (64, True)
    """
    if format not in FORMATS:
        raise ExportError(unknown("format", format, FORMATS))
    if any(isinstance(part, ConditionalPrompts) for part in parts_of(classifier.head)):
        raise ExportError(f"{classifier.method} encodes prompts for every image, which no exported file does: export a "
                          "method whose class vectors are fixed, such as coop")
    kind, subject, file = FORMATS[format], Subject(classifier, encoder), Path(file)
    if file.suffix != kind.suffix:
        raise ExportError(f"{file}: give a name that ends in {kind.suffix}, which readers of this format go by")
    script = None if encoder is None or encoder.preparation.custom else script_beside(file, encoder.preparation)
    values = subject.random(_ROWS if encoder is None else _IMAGES) if check is None else torch.as_tensor(check)
    with whole_file(file) as opened:
        content = kind.write(subject)
        difference = _compare(subject, kind.run(content, values.float()), values.float(), file)
        opened.write(content)
    if script:
        with whole_file(script[0]) as opened:
            opened.write(script[1].encode("utf-8"))
    return Exported(file, format, len(content), len(values), difference, script[0] if script else None)


def _compare(subject: Subject, found: tuple[Tensor, Tensor], values: Tensor, file: Path) -> float:
    """The largest difference of answers. Raises ExportError if it, or a class, is not what rounding explains."""
    (logits, probabilities), (found_logits, found_probabilities) = subject.answers(values), found
    allowed = max(_TOLERANCE, _ROUNDINGS * float(logits.abs().max()))
    difference = max(float((found_logits - logits).abs().max()),
                     float((found_probabilities - probabilities).abs().max()))
    if difference > allowed:
        with suppress(RuntimeError):  # a head of a user's own may take float32 alone
            allowed = max(allowed, _OWN_ROUNDINGS * subject.rounding(values))
    short = logits.amax(dim=1) - logits.gather(1, found_logits.argmax(dim=1, keepdim=True)).squeeze(1)
    if not difference <= allowed or bool((short > 2 * allowed).any()):  # NaN is no agreement either
        raise ExportError(f"{file} was not written: its answers differ from onceclip's by {difference:.2g} on "
                          f"{len(values)} rows, more than the {allowed:.1g} of rounding: please report it with the "
                          "method and the versions of torch and onnxruntime")
    return difference


_SCRIPT = "preprocess.py"


def script_beside(file: Path, preparation: Preparation) -> tuple[Path, str]:
    """The script that makes pixels for a file, and where it goes: beside it.

    Raises ExportError if another script of this name is there, which is not overwritten.
    """
    path, text = file.with_name(_SCRIPT), Path(preprocess.__file__).read_text(encoding="utf-8")
    before, mark, after = text.partition("HOW: dict[str, Any] = ")
    how = {name: getattr(preparation, name) for name in preprocess.HOW}
    how["size"] = list(preparation.size)
    text = f"{before}{mark}{how!r}{after[after.index('}') + 1:]}"
    if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
        raise ExportError(f"{path} is there already, of your own or of an encoder that prepares images otherwise: "
                          "export into another folder, or move it away")
    return path, text


_CHECK_ROWS, _CHECK_IMAGES = 1024, 16


def stored_rows(classifier: Classifier, place: str) -> np.ndarray:
    """Raw rows of a store, spread over it: what the classifier takes (rows, dim).

    Raises StoreMismatch if another encoder made the store, ExportError if it has no rows.
    """
    store = open_store(place)
    check_encoder(classifier, store)
    rows = store.rows(labelled=False)
    if not len(rows):
        raise ExportError(f"{place} has no rows to compare on: give another --check, or none")
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(_CHECK_ROWS, len(rows))).astype(int))]
    return np.concatenate([np.asarray(values, np.float32) for values in inputs_of(classifier, store, chosen)])


def prepared_images(encoder: Encoder, folder: Path) -> np.ndarray:
    """Pixels of the first images of a folder, as an exported file takes them: float32 (images, 3, height, width).

    Raises ExportError if none of them can be read.
    """
    if not folder.is_dir():
        raise ExportError(f"--check {folder} is no folder: with --with-encoder give a folder of images")
    found: list[np.ndarray] = []
    with decoding():
        for record in list_images(folder):
            try:
                found.append(encoder.preparation.pixels(record.content.read()))
            except BadImage:
                continue
            if len(found) == _CHECK_IMAGES:
                break
    if not found:
        raise ExportError(f"no image of {folder} can be read: give another --check, or none")
    pixels = np.stack(found)
    return pixels if encoder.preparation.custom else pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
