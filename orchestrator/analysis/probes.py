"""Linear probes: how well a linear classifier tells the classes from a representation.

Shapes: N images; D values of a representation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

COMPONENTS = 256
"""Principal components that a probe reads at most."""
PENALTIES: Sequence[float] = tuple(10.0**power for power in range(-4, 4))


def probe_accuracy(
    train_ND: NDArray[np.floating],
    train_labels_N: NDArray[np.integer],
    held_ND: NDArray[np.floating],
    held_labels_N: NDArray[np.integer],
    *,
    seed: int,
) -> float:
    """Return the accuracy on the held-out images of a ridge classifier fitted to the training images.

    Values are scaled by one factor to a mean squared length of 1, projected on the first `COMPONENTS` principal components of the
    training images, and regressed on one-vs-rest labels; the penalty, one of `PENALTIES`, is the best by leave-one-out error on the
    training images. `seed` is of the randomised decomposition.
    """
    # Imported when needed: scikit-learn takes a second.
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline

    # One factor, not one per value: it would make the values that hardly vary as loud as those that do.
    centre_D = train_ND.mean(axis=0, dtype=np.float64)
    train, held = ((values_ND - centre_D).astype(np.float32) for values_ND in (train_ND, held_ND))
    length = float(np.sqrt(np.square(train, dtype=np.float64).sum() / len(train))) or 1.0
    components = min(COMPONENTS, len(train) - 1, train.shape[1])
    solver = "randomized" if 2 * components < min(train.shape) else "full"
    probe = make_pipeline(PCA(components, svd_solver=solver, random_state=seed), RidgeClassifierCV(alphas=PENALTIES))
    probe.fit(train / length, train_labels_N)
    return float((probe.predict(held / length) == held_labels_N).mean())
