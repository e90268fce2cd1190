"""Further versions of an image, decided by its content alone: the same on every machine and in every order."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from onceclip.errors import one_line
from onceclip.pipeline.decoding.preparation import FILTERS, Opened, Preparation
from onceclip.pipeline.errors import BadImage
from onceclip.pipeline.files import Box
from onceclip.stores.identity import canonical, digest, fingerprint

CROPS = "crops"
KINDS = ("random", "ten-crop", CROPS)
_TRIES = 10
_TEN_CROP_RESIZE = (8, 7)  # 256 for an encoder of 224 pixels, as is usual for ten crops


@dataclass(frozen=True)
class Views:
    """How views of an image are made.

    kind: "random" for view 0, the plain one, and `number` - 1 random resized crops that are flipped half of the time;
    "ten-crop" for the four corners and the centre of an image resized to 8/7 of the encoder's size, then the same
    flipped; "crops" for view 0, the plain one, and the boxes that the source gives, each prepared as an image of its
    own. An image with fewer boxes is filled up with the plain one. scale: range of the random crops' share of the area.
    ratio: range of their width / height.
    seed: with an image's content and the number of the view it decides the crop. boxes: identity of all given boxes.
    with_plain: whether the plain image is put before the views, to encode all in one pass.
    """

    kind: str = "random"
    number: int = 10
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    seed: int = 1
    boxes: str = ""
    with_plain: bool = False

    @property
    def plain(self) -> bool:
        """Whether view 0 is the plain image."""
        return self.kind != "ten-crop"

    @property
    def drawn(self) -> int:
        """Number of images that `pixels` gives of each image."""
        return self.number - self.plain + self.with_plain

    def spec(self) -> dict[str, Any]:
        """As JSON values that say all about them."""
        if self.kind == "ten-crop":
            return {"kind": self.kind, "number": self.number, "resize": list(_TEN_CROP_RESIZE)}
        if self.kind == CROPS:
            return {"kind": self.kind, "number": self.number, "boxes": self.boxes, "plain": 0}
        return {"kind": self.kind, "number": self.number, "scale": list(self.scale), "ratio": list(self.ratio),
                "seed": self.seed, "flip": 0.5, "plain": 0}

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Views | None:
        """The views that `spec` described; None for a description that is not of this project's making.

        Raises ValueError for numbers that no views have: a file's word is a claim.
        """
        kind = spec.get("kind")
        if kind == TEN_CROP.kind:
            return TEN_CROP
        if kind not in KINDS:
            return None
        try:
            number = int(spec["number"])
            views = (cls(CROPS, number, boxes=str(spec["boxes"])) if kind == CROPS else
                     cls(kind, number, _range(spec["scale"]), _range(spec["ratio"]), int(spec["seed"])))
            if number < 2 or views.scale[1] > 1:
                raise ValueError
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"these are no views: {str(dict(spec))[:200]}") from error
        return views

    def pixels(self, content: bytes, preparation: Preparation, boxes: Sequence[Box] = ()) -> np.ndarray:
        """The views of an image file that are not the plain one: (drawn, *pixels of one image).

        boxes: those that the source gives for the image.
        Raises BadImage as `Preparation.pixels` does, or for a box outside of the image.
        """
        if self.with_plain:
            views = replace(self, with_plain=False).pixels(content, preparation, boxes)
            return np.concatenate([preparation.pixels(content)[None], views])
        opened = preparation.open(content, whole=True)
        try:
            if self.kind == "ten-crop":
                return np.stack([preparation.array(image) for image in _ten_crops(opened, preparation)])
            if self.kind == CROPS:
                if len(boxes) > self.drawn:
                    raise BadImage(f"it has {len(boxes)} boxes, and the store has room for {self.drawn}")
                filling = [preparation.pixels(content)] * (self.drawn - len(boxes))
                return np.stack([*(_part(opened.image, box, preparation) for box in boxes), *filling])
            return np.stack([preparation.array(self._crop(opened.image, digest(content), number, preparation))
                             for number in range(1, self.number)])
        except BadImage:
            raise
        except Exception as error:
            raise BadImage(f"cannot be cropped ({one_line(error)})") from error

    def _crop(self, image: Image.Image, content: bytes, number: int, preparation: Preparation) -> Image.Image:
        """One random resized crop, drawn as torchvision's RandomResizedCrop draws it."""
        # Of Python's generators only `random()` is promised to give the same numbers in every version.
        draw = random.Random(int.from_bytes(digest(canonical([self.seed, content.hex(), number])))).random
        left, top, width, height = self._box(*image.size, draw)
        flip = draw() < 0.5
        image = image.crop((left, top, left + width, top + height))
        image = image.resize(preparation.size[::-1], FILTERS[preparation.interpolation])
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image

    def _box(self, wide: int, high: int, draw: Any) -> tuple[int, int, int, int]:
        def between(low: float, high: float) -> float:
            return low + (high - low) * draw()

        for _ in range(_TRIES):
            area = wide * high * between(*self.scale)
            ratio = math.exp(between(*map(math.log, self.ratio)))
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= wide and 0 < height <= high:
                return int(draw() * (wide - width + 1)), int(draw() * (high - height + 1)), width, height
        # An image too long for any of these: its middle, as long as the range of ratios allows.
        width = min(wide, round(high * self.ratio[1]))
        height = min(high, round(wide / self.ratio[0]))
        return (wide - width) // 2, (high - height) // 2, max(width, 1), max(height, 1)


TEN_CROP = Views("ten-crop")


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = map(float, values)
    if not 0 < low <= high < math.inf:
        raise ValueError
    return low, high


def crops_of(boxes: Mapping[str, Sequence[Box]]) -> Views:
    """The views of images with these boxes, by their keys."""
    return Views(CROPS, 1 + max(map(len, boxes.values())),
                 boxes=fingerprint({key: [list(box) for box in each] for key, each in boxes.items()}))


def _part(image: Image.Image, box: Box, preparation: Preparation) -> np.ndarray:
    """The pixels of what a box and the image have in common."""
    x0, y0, x1, y1 = box
    left, top = math.floor(x0), math.floor(y0)
    right, bottom = min(math.ceil(x1), image.width), min(math.ceil(y1), image.height)
    if left >= right or top >= bottom:
        raise BadImage(f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} lies outside of its {image.width} x {image.height} "
                       "pixels")
    part = image.crop((left, top, right, bottom))
    return preparation.plain(Opened(part, part.size))


def _ten_crops(opened: Opened, preparation: Preparation) -> list[Image.Image]:
    height, width = preparation.size
    more, less = _TEN_CROP_RESIZE
    large = replace(preparation, size=(round(height * more / less), round(width * more / less)), resize_mode="shortest")
    wide, high = large.resized(*opened.size)
    image = opened.image.resize((wide, high), FILTERS[preparation.interpolation])
    right, below = wide - width, high - height
    middle = round(right / 2), round(below / 2)
    corners = [(0, 0), (right, 0), (0, below), (right, below), middle]

    def five(image: Image.Image) -> list[Image.Image]:
        return [image.crop((left, top, left + width, top + height)) for left, top in corners]

    return five(image) + five(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
