"""Augmentation of a batch of training images: mirror and shift, drawn per image from a given generator.

B examples; C, H, W of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repsearch.errors import ConfigError


def augment(images_BCHW: Tensor, *, flip: bool, pad_crop: int, rng: torch.Generator) -> Tensor:
    """Return images of the same shape and type, each mirrored left to right with probability 1/2 and shifted by up to `pad_crop` pixels.

    A shift is a reflection pad by `pad_crop` and a random crop back to size. The pixels depend on `rng` alone; with both off they are
    returned as they are and nothing is drawn.
    """
    if not flip and not pad_crop:
        return images_BCHW
    batch, channels, height, width = images_BCHW.shape
    check_pad_crop(pad_crop, height, width)
    rows_BH = _positions(batch, height, pad_crop, rng)
    columns_BW = _positions(batch, width, pad_crop, rng)
    if flip:
        mirrored_B1 = torch.rand((batch, 1), generator=rng, device=rng.device) < 0.5
        columns_BW = torch.where(mirrored_B1, columns_BW.flip(1), columns_BW)
    device = images_BCHW.device
    rows = rows_BH.to(device)[:, None, :, None].expand(batch, channels, height, width)
    columns = columns_BW.to(device)[:, None, None, :].expand(batch, channels, height, width)
    return images_BCHW.gather(2, rows).gather(3, columns)


def check_pad_crop(pad_crop: int, height: int, width: int) -> None:
    """Raise `ConfigError` unless images of `height` x `width` can be padded by reflection by `pad_crop` pixels."""
    most = min(height, width) - 1
    if pad_crop > most:
        raise ConfigError(f"learn.pad_crop: {pad_crop} does not fit {height}x{width} images; set it to {most} or less")


def _positions(batch: int, size: int, most: int, rng: torch.Generator) -> Tensor:
    # Source position of each row or column after a shift by -most..most, reflected at the edges (the edge pixel not repeated).
    if most == 0:
        return torch.arange(size, device=rng.device).expand(batch, size)
    shift_B1 = torch.randint(-most, most + 1, (batch, 1), generator=rng, device=rng.device)
    position_BS = (torch.arange(size, device=rng.device) + shift_B1).abs()
    return torch.where(position_BS >= size, 2 * (size - 1) - position_BS, position_BS)
