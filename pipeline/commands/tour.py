"""The demonstration's pictures: scikit-learn's 1,797 handwritten digits, real scans of 8 x 8 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

TEMPLATE = "a photo of the digit {}."


def write_digits(folder: Path) -> int:
    """Write the digits as a plain image folder, `folder/7/digit-0007.png`, and give their number.

    Dark ink on white paper, one pixel of the file for one of the scan.
    """
    digits = load_digits()
    for number, (ink, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"digit-{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray((255 - np.round(ink * 255 / 16)).astype(np.uint8)).save(path)
    return len(digits.images)
