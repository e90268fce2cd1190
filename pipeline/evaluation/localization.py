"""How well scores of patches find the pixels that masks mark, whatever threshold would be chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onceclip.pipeline.evaluation.metrics import weighted_auroc

MOST = 0.3  # rate of false pixels up to which regions are counted


@dataclass(frozen=True)
class Marks:
    """What the masks of images mark, by patch. A pixel has the score of the patch that it is in.

    abnormal, normal: (n, patches) numbers of pixels that are marked, and that are not. region: (n, patches) sum over
    the connected regions of the share of the region that is in the patch. record: JSON values on the masks.
    """

    abnormal: np.ndarray
    normal: np.ndarray
    region: np.ndarray
    record: dict[str, Any]

    def scores(self, score: np.ndarray) -> dict[str, Any]:
        """Area under the ROC curve of all pixels, and PRO, of scores of patches (n, patches), as JSON values."""
        flat = score.ravel(), self.abnormal.ravel(), self.normal.ravel()
        return {"pixel_auroc": weighted_auroc(*flat),
                "pro": per_region_overlap(flat[0], self.region.ravel(), flat[2]), "masks": self.record}


def per_region_overlap(score: np.ndarray, region: np.ndarray, normal: np.ndarray, most: float = MOST) -> float | None:
    """Area under the mean share of the regions that is found, over the rate of false pixels up to `most`, over `most`.

    score: (n,), the higher the more abnormal. region, normal: (n,), as of `Marks`. None without pixels of both kinds.
    Source: PRO, of The MVTec Anomaly Detection Dataset (Bergmann et al., IJCV 2021), section 4.3.
    """
    regions, pixels = region.sum(), normal.sum()
    if not regions or not pixels:
        return None
    levels, place = np.unique(-score, return_inverse=True)
    found, false = (np.concatenate([[0.0], np.cumsum(np.bincount(place, each, len(levels))) / each.sum()])
                    for each in (region, normal))
    kept = false < most
    x, y = np.append(false[kept], most), np.append(found[kept], np.interp(most, false, found))
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / most)
