"""Masks of abnormal pixels: files beside the images, brought to the pixels that the encoder saw."""

from __future__ import annotations

import csv
import math
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from onceclip.adapters import MethodError
from onceclip.adapters.inference import Inference
from onceclip.pipeline.decoding.preparation import Preparation
from onceclip.pipeline.encoders.opening import recorded_encoder
from onceclip.pipeline.errors import BadImage, SourceError
from onceclip.pipeline.evaluation.evaluate import Evaluation
from onceclip.pipeline.evaluation.inference import normal_rows
from onceclip.pipeline.evaluation.metrics import Marks
from onceclip.pipeline.evaluation.queries import require_several
from onceclip.pipeline.files import IMAGES, File, file_at, is_url, key_of, parent, read_text, suffix
from onceclip.stores.identity import decode_key, digest

_ENDS = ("", "_mask")  # of a mask's name, before what it has in place of the image's ending


def masks_of(place: str, alone: Evaluation, strategy: Inference) -> Marks:
    """What the masks of images that are evaluated mark, by patch.

    place: a .csv file with the columns path and mask, in which masks are relative to it; or a folder, which has the
        mask of train/crack/1.png as train/crack/1.png or crack/1.png, of any kind of image, or as 1_mask.png.
    alone: of the images. strategy: one that reads patches and knows a normal class, whose images need no mask.
    A mask is resized and cropped as an image of its size is. What is brighter than half of its brightest pixel is
    marked; of a normal image a mask may be black.
    Raises SourceError for a missing or unreadable mask, another black one, or patches that are no square,
    MethodError for another strategy, StoreIncomplete where there are no patches.
    """
    store, rows, normal = alone.store, alone.rows, normal_rows(alone, strategy)
    if strategy.sees != "patches" or normal is None:
        raise MethodError(f"masks are for a strategy that says which patches are abnormal, and {strategy.name} does "
                          "not: use anovl or patch-knn, or leave --masks out")
    require_several(store, strategy.sees, alone.split, strategy.name)
    keys = store.column("key")[rows].tolist()
    files = _listed(place, keys) if suffix(place) == ".csv" else _beside(place, keys)
    if lacking := [key for key, own in zip(keys, normal.tolist(), strict=True) if not own and key not in files]:
        more = f" (and {len(lacking) - 1} more)" if lacking[1:] else ""
        raise SourceError(f"{place} has no mask of {lacking[0]}{more}: give one of every image that is not normal")
    patches = store.outputs["token"].shape[0]
    side = math.isqrt(patches)
    preparation = recorded_encoder(store.encoder, store.path, None, "cpu", ", or leave --masks out").preparation
    if side * side != patches or preparation.custom:
        raise SourceError(f"{store.path} has {patches} patches of images that {store.encoder['name']} prepares: masks "
                          "are for a square of patches, and a preprocessing that onceclip does: leave --masks out")
    height, width = preparation.size
    patch = (np.arange(height) * side // height)[:, None] * side + np.arange(width) * side // width
    abnormal, region = np.zeros((2, len(rows), patches), np.float32)
    outside, content, sizes = 0, [], Counter[str]()
    for number, key in enumerate(keys):
        if key in files:
            marked, size, own = _marked(files[key], preparation, f"the mask of {key}", bool(normal[number]))
            content.append(f"{key} {own}")
            sizes[size] += 1
            outside += not (marked.any() or normal[number])
            abnormal[number], region[number] = _by_patch(marked, patch, patches)
    pixels = np.bincount(patch.ravel(), minlength=patches).astype(np.float32)
    return Marks(abnormal, pixels - abnormal, region, {
        "n": len(content), "sizes": dict(sizes), "outside_of_the_crop": int(outside), "pixels": [height, width],
        "patches": [side, side],
        "fingerprint": digest("\n".join(content).encode()).hex()})


def _marked(file: File, preparation: Preparation, what: str, normal: bool) -> tuple[np.ndarray, str, str]:
    """The marked pixels (height, width) bool of what the encoder saw, the size of the file, and its digest."""
    try:
        content = file.read()
        opened = preparation.open(content)
        brightest = np.asarray(opened.image.convert("L")).max()
        values = preparation.plain(opened).max(axis=2)
    except BadImage as error:
        raise SourceError(f"{what}: {error}: give an image in which abnormal pixels are bright") from error
    if not (brightest or normal):
        raise SourceError(f"{what} is black, and the image is not of the normal class: give an image of its size, in "
                          "which abnormal pixels are bright and all others black")
    return values > brightest / 2, " x ".join(map(str, opened.size)), digest(content).hex()


def _by_patch(marked: np.ndarray, patch: np.ndarray, patches: int) -> tuple[np.ndarray, np.ndarray]:
    """Number of marked pixels of each patch, and the shares of connected regions that lie in it: two of (patches,)."""
    from scipy.ndimage import label as regions_of  # takes a second

    found, count = regions_of(marked, np.ones((3, 3)))
    share = 1 / np.bincount(found.ravel(), minlength=count + 1)
    return np.bincount(patch[marked], minlength=patches), np.bincount(patch[marked], share[found[marked]], patches)


def _listed(place: str, keys: Sequence[str]) -> dict[str, File]:
    """The masks that a table names, by key."""
    lines = csv.DictReader(read_text(place).splitlines())
    wanted, found = {*keys}, dict[str, File]()
    try:
        if not {"path", "mask"} <= {*(lines.fieldnames or ())}:
            raise SourceError(f"{place} has no columns path and mask: give lines PATH,MASK under such a heading")
        for line in lines:
            if line["mask"] and (key := key_of(line["path"] or "")) in wanted:
                if key in found:
                    raise SourceError(f"{place} line {lines.line_num}: {key} has a mask already: give one of each "
                                      "image")
                found[key] = file_at(parent(place), line["mask"])
    except (csv.Error, UnicodeEncodeError) as error:
        raise SourceError(f"{place} line {lines.line_num}: {error}: correct it") from error
    return found


def _beside(place: str, keys: Sequence[str]) -> dict[str, File]:
    """The masks that a folder has under the names of the images, by key."""
    if is_url(place) or not os.path.isdir(place):
        raise SourceError(f"{place} is no folder: give that of the masks, or a .csv file with columns path and mask")
    found: dict[str, File] = {}
    for key in keys:
        name = os.path.splitext(decode_key(key))[0]
        if os.path.isabs(name) or os.pardir in name.split(os.sep):  # a store names nothing outside of the folder
            continue
        for stem in (name, name.partition(os.sep)[2]):
            for path in (f"{os.path.join(place, stem)}{end}{kind}" for end in _ENDS for kind in sorted(IMAGES) if stem):
                if key not in found and os.path.isfile(path):
                    found[key] = file_at("", path)
    return found
