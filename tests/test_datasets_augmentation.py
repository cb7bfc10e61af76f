"""Mirror and shift: what each may do, and reproducibly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from repsearch.datasets.augmentation import augment
from repsearch.errors import ConfigError


def images(count: int = 64, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 6, 7), generator=torch.Generator().manual_seed(0)).to(dtype)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_off_returns_the_images_and_draws_nothing() -> None:
    generator = rng()
    before = generator.get_state()
    batch = images()
    assert augment(batch, flip=False, pad_crop=0, rng=generator) is batch
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flip_mirrors_about_half_of_the_images(dtype: torch.dtype) -> None:
    batch = images(400, dtype)
    result = augment(batch, flip=True, pad_crop=0, rng=rng())
    same = (result == batch).flatten(1).all(1)
    mirrored = (result == batch.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all()) and result.dtype == dtype
    assert 140 < int(mirrored.sum()) < 260


@pytest.mark.parametrize("flip", [False, True])
def test_each_result_is_a_crop_of_the_reflection_padded_image(flip: bool) -> None:
    batch, pad = images(), 2
    result = augment(batch, flip=flip, pad_crop=pad, rng=rng())
    padded = F.pad(batch.float(), (pad,) * 4, mode="reflect").to(torch.uint8)
    seen = set()
    for image, source in zip(result, padded, strict=True):
        crops = {
            (row, column): source[:, row : row + 6, column : column + 7] for row in range(2 * pad + 1) for column in range(2 * pad + 1)
        }
        found = {(*shift, kind) for shift, crop in crops.items() for kind in (0, 1) if torch.equal(image, crop.flip(2) if kind else crop)}
        assert found
        seen |= found
    # Of the 25 shifts nearly every one occurs among 64 images.
    assert len({(row, column) for row, column, _ in seen}) >= 20
    assert {kind for *_, kind in seen} == ({0, 1} if flip else {0})


def test_the_result_is_a_function_of_the_generator() -> None:
    first, again, other = (augment(images(), flip=True, pad_crop=2, rng=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_shift_wider_than_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"learn\.pad_crop: 6 does not fit 6x7 images; set it to 5 or less"):
        augment(images(), flip=False, pad_crop=6, rng=rng())
    assert augment(images(), flip=False, pad_crop=5, rng=rng()).shape == images().shape
