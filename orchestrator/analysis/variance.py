"""What explains the variance of a set of vectors: their class, their image, or neither.

The model is nested: y_nk = mean + class effect + effect of image n in its class + effect of search k of image n, summed over the values
of the vectors. Mean squares are turned into components by the method of moments (Searle, Casella & McCulloch 1992, chapter 3), because
raw sums of squares give the upper levels a share of what lies below them.

Shapes: N images; K vectors of an image; D values of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Shares of the variance of a vector; they add up to 1, or are all 0 where nothing varies.

    by_class: between the means of classes. by_image: between images of a class. by_search: between searches of an image.
    """

    by_class: float
    by_image: float
    by_search: float


def variance_shares(values_NKD: NDArray[np.floating], classes_N: NDArray[np.integer]) -> Shares:
    """Return the shares of class, image and search; with K = 1, what searches add cannot be told from the image and counts there.

    Needs two classes and more images than classes; a component estimated below zero counts as zero.
    """
    N, K = values_NKD.shape[:2]
    members_C = np.unique(classes_N, return_counts=True)[1].astype(np.float64)
    C = len(members_C)
    assert C >= 2 and N > C, "variance by class needs two classes and an image more than classes"
    image_ND = values_NKD.mean(axis=1, dtype=np.float64)
    class_CD = np.stack([image_ND[classes_N == label].mean(axis=0) for label in np.unique(classes_N)])
    of_image_ND = class_CD[np.searchsorted(np.unique(classes_N), classes_N)]
    within = sum(float(np.square(values_KD - mean_D).sum()) for values_KD, mean_D in zip(values_NKD, image_ND, strict=True))
    between_images = K * float(np.square(image_ND - of_image_ND).sum())
    between_classes = K * float((members_C[:, None] * np.square(class_CD - image_ND.mean(axis=0))).sum())
    mean_search = within / (N * (K - 1)) if K > 1 else 0.0
    mean_image, mean_class = between_images / (N - C), between_classes / (C - 1)
    images_per_class = (N - float(np.square(members_C).sum()) / N) / (C - 1)
    parts = [max(0.0, (mean_class - mean_image) / (K * images_per_class)), max(0.0, (mean_image - mean_search) / K), mean_search]
    total = sum(parts)
    by_class, by_image, by_search = [part / total for part in parts] if total > 0 else parts
    return Shares(by_class=by_class, by_image=by_image, by_search=by_search)
