"""The user's own images: one folder per class.

`root/<class>/...` is split by the run's seed; with `root/train/<class>/...` and `root/test/<class>/...` (and perhaps
`root/validation/<class>/...`) those parts are used. Files are listed in sorted order, counted, chosen, and only then decoded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from repsearch.datasets.base import Data, Split
from repsearch.datasets.noise import LabelNoise
from repsearch.datasets.splitting import FitnessPart, assemble, choose
from repsearch.errors import DatasetError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
# Modes of PIL by number of channels; palette images can hold either, and 16-bit and float images are not 0..255.
_GREY, _COLOUR, _PALETTE = {"1", "L", "LA", "La"}, {"RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"}, {"P", "PA"}


@dataclass(frozen=True)
class Listing:
    """Image files of one part, sorted by class and path, and the class number of each."""

    files: list[Path]
    labels: list[int]


@dataclass(frozen=True, kw_only=True)
class ImageFolder(LabelNoise, FitnessPart):
    """Any folder of class folders with images, resized to squares.

    root: folder with a folder per class, or with `train` and `test` (and perhaps `validation`), each with a folder per class.
    size: height and width in pixels; the shorter side is resized to it, then the centre is cropped.
    channels: 1 for grey images, 3 for colour.
    train: training images, drawn by the run's seed; all that are left if not given.
    validation: validation images, drawn by the run's seed; if not given, all of `root/validation`, or a tenth of the training images.
    test: test images, drawn by the run's seed; if not given, all of `root/test`, or a fifth of the images.
    """

    root: str
    size: Annotated[int, Field(ge=2)]
    channels: Literal[1, 3] = 3
    train: Annotated[int, Field(ge=1)] | None = None
    validation: Annotated[int, Field(ge=1)] | None = None
    test: Annotated[int, Field(ge=1)] | None = None

    def load(self, *, seed: int) -> Data:
        """Return the data, split by `seed`; raises `DatasetError` naming the folder or file at fault."""
        root = Path(self.root).expanduser()
        folders = part_folders(root)
        classes = class_names(folders["train"])
        lists = {part: list_images(folder, classes) for part, folder in folders.items()}
        pool = len(lists["train"].files)
        own = {part: len(lists[part].files) if part in lists else None for part in ("validation", "test")}
        test = self.test if own["test"] is not None else self.test or max(1, pool // 5)
        validation = self.validation if own["validation"] is not None else self.validation or max(1, pool // 10)
        choice = choose(
            pool=pool,
            own_validation=own["validation"],
            own_test=own["test"],
            train=self.train,
            validation=validation,
            test=test,
            fitness=self.fitness,
            seed=seed,
        )
        splits = {
            part: self._decode(lists.get(part, lists["train"]), getattr(choice, part))
            for part in ("train", "validation", "test", "fitness")
        }
        learned, held_out = self.disturbed(splits["train"], splits["validation"], classes=len(classes), seed=seed)
        fitness = self.disturbed_fitness(splits["fitness"], classes=len(classes), seed=seed)
        return assemble("image_folder", classes, train=learned, validation=held_out, test=splits["test"], fitness=fitness)

    def _decode(self, listing: Listing, numbers_N: Tensor) -> Split:
        numbers = numbers_N.tolist()
        images = torch.empty((len(numbers), self.channels, self.size, self.size), dtype=torch.uint8)
        for row, number in enumerate(numbers):
            images[row] = read_image(listing.files[number], size=self.size, channels=self.channels)
        return Split(images, torch.tensor(listing.labels, dtype=torch.int64)[numbers_N])


def part_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each part that has one of its own; `train` is the root itself where there are no parts."""
    if not root.is_dir():
        raise DatasetError(f"dataset.root: {root}: no such folder; expected a folder per class with images in it")
    has = {part: (root / part).is_dir() for part in ("train", "validation", "test")}
    if has["train"] and has["test"]:
        return {part: root / part for part, there in has.items() if there}
    if has["train"]:
        # Taking `train` for a class would train on the wrong question without a word.
        raise DatasetError(f"dataset.root: {root}: has train/ but no test/; add test/<class>/, or set `dataset.root` to {root / 'train'}")
    return {"train": root}


def class_names(folder: Path) -> list[str]:
    """Return the sorted names of the class folders in `folder`; hidden ones do not count."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DatasetError(f"dataset.root: {folder}: no class folder in it; expected {folder}/<class>/<image>.jpg")
    if len(names) == 1:
        raise DatasetError(f"dataset.root: {folder}: one class only ({names[0]}); expected a folder for each of two or more classes")
    return names


def list_images(folder: Path, classes: Sequence[str]) -> Listing:
    """Return the image files below each class folder of `folder`, in sorted order."""
    unknown = [name for name in class_names(folder) if name not in classes]
    if unknown:
        raise DatasetError(f"dataset.root: {folder / unknown[0]}: class {unknown[0]!r} has no folder among the training images")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        # A part may lack a class; a class folder that is there must have images.
        if (folder / name).is_dir():
            found = image_files(folder / name)
            files += found
            labels += [label] * len(found)
    return Listing(files, labels)


def image_files(folder: Path) -> list[Path]:
    """Return the image files in `folder` and below, sorted by path; raises `DatasetError` if there are none."""
    found = [
        Path(where) / name
        for where, _, names in os.walk(folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    ]
    if not found:
        raise DatasetError(f"dataset.root: {folder}: class folder without images; add some ({', '.join(sorted(SUFFIXES))}) or remove it")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_image(path: Path, *, size: int, channels: int) -> Tensor:
    """Return image `path` as uint8 (channels, size, size), or raise `DatasetError` naming the file."""
    try:
        with Image.open(path) as image:
            image.load()
            mode, pixels = image.mode, image.copy()
    except Exception as error:  # PIL's decoders raise many types for damaged files, SyntaxError and struct.error among them.
        raise DatasetError(f"{path}: cannot be decoded as an image ({error}); replace or remove the file") from error
    if mode not in _GREY | _COLOUR | _PALETTE:
        raise DatasetError(f"{path}: pixel format {mode} is not supported; convert the file to 8 bits per channel")
    there = 1 if mode in _GREY else 3
    if there != channels and mode not in _PALETTE:
        raise DatasetError(f"{path}: has {there} channel(s), but `dataset.channels` is {channels}; set it to {there} or convert the file")
    square = centre_square(pixels.convert("L" if channels == 1 else "RGB"), size)
    array = np.array(square, dtype=np.uint8)
    return torch.from_numpy(array.reshape(size, size, channels)).permute(2, 0, 1)


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Return the centre `size` x `size` of `image` with its shorter side resized to `size`; unchanged if it has that size already."""
    if image.size == (size, size):
        return image
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
