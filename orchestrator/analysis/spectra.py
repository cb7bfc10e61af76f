"""Power of maps by spatial frequency.

Shapes: H, W of a map, after any leading axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def radial_power(maps_HW: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the mean power per Fourier mode by wave number, in cycles per map, rounded to whole ones, from 0 to half the shorter side.

    Averaged over all leading axes. The power of a mode is |F|^2 / (H W)^2, so that the sum over all modes is the mean square of a map
    (Parseval); corners beyond the last whole wave number are left out.
    """
    H, W = maps_HW.shape[-2:]
    power_HW = np.zeros((H, W))
    maps = maps_HW.reshape(-1, H, W)
    # In parts: the transform is complex128, four times the memory of the maps.
    for part in np.array_split(maps, max(1, len(maps) // 4096)):
        power_HW += np.square(np.abs(np.fft.fft2(part))).sum(axis=0)
    power_HW /= len(maps) * (H * W) ** 2
    radius_HW = np.hypot(np.fft.fftfreq(H, 1 / H)[:, None], np.fft.fftfreq(W, 1 / W)[None])
    wave_HW = np.rint(radius_HW).astype(int)
    last = min(H, W) // 2
    sums, counts = (np.bincount(wave_HW.ravel(), weights, minlength=last + 1)[: last + 1] for weights in (power_HW.ravel(), None))
    return np.asarray(sums / counts, dtype=np.float64)
