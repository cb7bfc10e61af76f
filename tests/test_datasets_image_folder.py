"""Image folders: layouts, decoding, and every way in which a user's folder can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from repsearch.datasets import load_data
from repsearch.datasets.base import Data
from repsearch.datasets.image_folder import read_image
from repsearch.errors import ConfigError, DatasetError


def write_image(path: Path, *, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)
    return path


def write_classes(root: Path, *, per_class: int = 10, classes: tuple[str, ...] = ("cat", "dog"), mode: str = "RGB", seed: int = 0) -> None:
    for label, name in enumerate(classes):
        for number in range(per_class):
            write_image(root / name / f"{number:03d}.png", seed=seed + 1000 * label + number, mode=mode)


def load(root: Path, **fields: Any) -> Data:
    return load_data({"name": "image_folder", "root": str(root), "size": 8, **fields}, seed=0)


def test_class_folders_are_split_by_the_seed(tmp_path: Path) -> None:
    write_classes(tmp_path)
    data = load(tmp_path)
    assert data.classes == ("cat", "dog") and data.input_shape == (3, 8, 8)
    # A fifth of 20 for testing, a tenth for validation.
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)
    rows = torch.cat([split.images for split in (data.train, data.validation, data.test)]).flatten(1)
    assert len(rows.unique(dim=0)) == 20
    assert load(tmp_path, train=5).train.images.equal(data.train.images[:5])


def test_pixels_are_those_of_the_files(tmp_path: Path) -> None:
    write_classes(tmp_path)
    data = load(tmp_path)
    expected = {
        (np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes(), label)
        for label, name in enumerate(data.classes)
        for path in (tmp_path / name).iterdir()
    }
    splits = (data.train, data.validation, data.test)
    assert {
        (row.numpy().tobytes(), int(label)) for split in splits for row, label in zip(split.images, split.labels, strict=True)
    } == expected


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "validation", "test")])
def test_parts_with_folders_of_their_own_are_used(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for number, part in enumerate(parts):
        write_classes(tmp_path / part, per_class=10 - 2 * number, seed=100 * number)
    data = load(tmp_path)
    if "validation" in parts:
        assert (len(data.train), len(data.validation), len(data.test)) == (20, 16, 12)
    else:
        assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 16)


def test_the_digest_does_not_depend_on_where_the_files_lie(tmp_path: Path) -> None:
    for where in ("here", "there/deeper"):
        write_classes(tmp_path / where)
    assert load(tmp_path / "here").digest == load(tmp_path / "there" / "deeper").digest


def test_nested_folders_count_and_hidden_and_other_files_do_not(tmp_path: Path) -> None:
    write_classes(tmp_path, per_class=5)
    write_image(tmp_path / "cat" / "more" / "x.JPG", seed=9)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / ".cache").mkdir()
    data = load(tmp_path)
    assert len(data.train) + len(data.validation) + len(data.test) == 11


def test_grey_images(tmp_path: Path) -> None:
    write_classes(tmp_path, mode="L")
    assert load(tmp_path, channels=1).input_shape == (1, 8, 8)


def test_only_the_chosen_images_are_decoded(tmp_path: Path) -> None:
    write_classes(tmp_path)
    whole = load(tmp_path)
    last = whole.train.images[-1]
    path = next(path for path in tmp_path.rglob("*.png") if read_image(path, size=8, channels=3).equal(last))
    path.write_bytes(b"damaged")
    assert len(load(tmp_path, train=13).train) == 13
    with pytest.raises(DatasetError, match=path.name):
        load(tmp_path)


@pytest.mark.parametrize(("size", "box"), [((16, 8), (4, 0)), ((8, 12), (0, 2)), ((9, 8), (0, 0))])
def test_the_centre_is_kept_and_the_shorter_side_resized(tmp_path: Path, size: tuple[int, int], box: tuple[int, int]) -> None:
    path = write_image(tmp_path / "x.png", seed=0, size=size)
    pixels = np.asarray(Image.open(path)).transpose(2, 0, 1)
    left, top = box
    # The shorter side has the wanted size already, so the pixels stay exactly as they are.
    assert np.array_equal(read_image(path, size=8, channels=3).numpy(), pixels[:, top : top + 8, left : left + 8])
    assert read_image(path, size=5, channels=3).shape == (3, 5, 5)
    assert read_image(path, size=20, channels=3).shape == (3, 20, 20)


def test_a_palette_image_fits_either_number_of_channels(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).quantize(16).save(path)
    with Image.open(path) as image:
        assert image.mode == "P"
    assert read_image(path, size=8, channels=1).shape == (1, 8, 8)
    assert read_image(path, size=8, channels=3).shape == (3, 8, 8)


@pytest.mark.parametrize(("mode", "channels", "there"), [("L", 3, 1), ("RGB", 1, 3)])
def test_images_of_another_number_of_channels_are_refused(tmp_path: Path, mode: str, channels: int, there: int) -> None:
    write_classes(tmp_path, mode=mode)
    with pytest.raises(DatasetError, match=rf"\.png: has {there} channel\(s\), but `dataset.channels` is {channels}; set it to {there}"):
        load(tmp_path, channels=channels)


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(path)
    with pytest.raises(DatasetError, match=r"x\.png: pixel format I;16 is not supported; convert the file to 8 bits"):
        read_image(path, size=8, channels=1)


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "header"])
def test_a_damaged_image_is_named(tmp_path: Path, damage: str) -> None:
    write_classes(tmp_path)
    for path in (tmp_path / "dog").iterdir():
        whole = path.read_bytes()
        damaged = {"text": b"not an image", "empty": b"", "truncated": whole[:-40], "header": whole[:30] + b"\xff" * 8 + whole[38:]}
        path.write_bytes(damaged[damage])
    with pytest.raises(DatasetError, match=r"dog/00\d\.png: cannot be decoded as an image .*replace or remove the file"):
        load(tmp_path)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere: no such folder; expected a folder per class"):
        load(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no class folder in it; expected .*<class>/<image>\.jpg"):
        load(tmp_path)


def test_one_class_only(tmp_path: Path) -> None:
    write_classes(tmp_path, classes=("cat",))
    with pytest.raises(DatasetError, match=r"one class only \(cat\)"):
        load(tmp_path)


def test_an_empty_class_folder(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / "emu").mkdir()
    with pytest.raises(DatasetError, match=r"emu: class folder without images"):
        load(tmp_path)


def test_a_train_folder_without_a_test_folder_is_not_taken_for_a_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "val")
    with pytest.raises(DatasetError, match=r"has train/ but no test/; .*set `dataset.root` to .*/train"):
        load(tmp_path)


def test_a_class_that_training_lacks(tmp_path: Path) -> None:
    write_classes(tmp_path / "train")
    write_classes(tmp_path / "test", classes=("cat", "emu"))
    with pytest.raises(DatasetError, match=r"test/emu: class 'emu' has no folder among the training images"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": 15}, "15 training examples asked for, but there are 14"),
        ({"test": 20}, "20 test examples asked for, but there are 20 to split off"),
        ({"validation": 16}, "16 validation examples asked for, but there are 16 to split off"),
    ],
)
def test_more_examples_than_there_are(tmp_path: Path, fields: dict[str, int], message: str) -> None:
    write_classes(tmp_path)
    with pytest.raises(DatasetError, match=message):
        load(tmp_path, **fields)


def test_the_number_of_channels_is_one_or_three(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.channels: should be 1 or 3 \(given: 2\)"):
        load(tmp_path, channels=2)


def test_a_folder_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset image_folder: .*File name too long: .*; check that the files can be read"):
        load(tmp_path / ("x" * 300))
