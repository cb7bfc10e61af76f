"""torchvision's four datasets: made-up images in the real file formats, integrity checks, downloads, real MNIST where it is there.

The made-up files take the path of the real ones: a subclass of torchvision's dataset names their own MD5s and a server on loopback.
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision.datasets as tv

from repsearch.datasets import load_data
from repsearch.datasets.base import Data
from repsearch.datasets.splitting import data_digest
from repsearch.datasets.torchvision import Cifar10, Cifar100, FashionMnist, Mnist
from repsearch.errors import DatasetError

TRAIN, TEST = 40, 20


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def images_and_labels(count: int, shape: tuple[int, ...], classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % classes


# --- CIFAR: pickled batches, in the bytes that Python 2 and an old numpy wrote


class OldPickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes numpy dtypes with `align=0`, as in the published files."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.dtype):
            return np.dtype, (value.str[1:], 0, 1), value.__reduce__()[2]
        return NotImplemented


def write_pickle(path: Path, value: Any) -> str:
    with path.open("wb") as file:
        OldPickler(file, protocol=2).dump(value)
    return md5(path)


def write_cifar10(root: Path) -> type[Any]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images, labels = images_and_labels(TRAIN + TEST, (3, 32, 32), 10, seed=0)
    names = [f"data_batch_{batch}" for batch in range(1, 6)] + ["test_batch"]
    rows = [*np.array_split(np.arange(TRAIN), 5), np.arange(TRAIN, TRAIN + TEST)]
    sums = [
        [name, write_pickle(folder / name, {"data": images[row].reshape(len(row), -1), "labels": labels[row].tolist()})]
        for name, row in zip(names, rows, strict=True)
    ]
    classes = [f"thing{number}" for number in range(10)]
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write_pickle(folder / "batches.meta", {"label_names": classes})}
    return type("CIFAR10", (tv.CIFAR10,), {"train_list": sums[:5], "test_list": sums[5:], "meta": meta})


def write_cifar100(root: Path) -> type[Any]:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    images, labels = images_and_labels(TRAIN + TEST, (3, 32, 32), 100, seed=0)
    sums = []
    for name, row in (("train", np.arange(TRAIN)), ("test", np.arange(TRAIN, TRAIN + TEST))):
        table = {"data": images[row].reshape(len(row), -1), "fine_labels": labels[row].tolist(), "coarse_labels": [0] * len(row)}
        sums.append([name, write_pickle(folder / name, table)])
    table = {"fine_label_names": [f"thing{number}" for number in range(100)], "coarse_label_names": []}
    meta = {"filename": "meta", "key": "fine_label_names", "md5": write_pickle(folder / "meta", table)}
    return type("CIFAR100", (tv.CIFAR100,), {"train_list": sums[:1], "test_list": sums[1:], "meta": meta})


@pytest.mark.parametrize(("member", "write", "classes"), [(Cifar10, write_cifar10, 10), (Cifar100, write_cifar100, 100)])
def test_cifar_files_are_read_as_torchvision_reads_them(tmp_path: Path, member: type[Any], write: Any, classes: int) -> None:
    source = write(tmp_path)
    spec = member(root=str(tmp_path), validation=10)
    object.__setattr__(spec, "source", lambda: source)  # torchvision with the MD5s of the made-up files
    data = spec.load(seed=0)
    assert data.input_shape == (3, 32, 32) and len(data.classes) == classes and data.name == member.name
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 20)
    images, labels = images_and_labels(TRAIN + TEST, (3, 32, 32), classes, seed=0)
    assert_same_examples([data.train, data.validation], images[:TRAIN], labels[:TRAIN])
    assert_same_examples([data.test], images[TRAIN:], labels[TRAIN:])


def assert_same_examples(splits: list[Any], images: np.ndarray, labels: np.ndarray) -> None:
    found = {(image.numpy().tobytes(), int(label)) for split in splits for image, label in zip(split.images, split.labels, strict=True)}
    assert found == {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    assert sum(map(len, splits)) == len(images)


def test_cifar_files_other_than_the_published_ones_are_refused_unopened(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    with pytest.raises(DatasetError, match=r"cifar10 cannot be read: .*corrupted.*cifar-10-batches-py/data_batch_1.*download = true"):
        load_data({"name": "cifar10", "root": str(tmp_path)}, seed=0)


def test_an_altered_cifar_file_is_refused(tmp_path: Path) -> None:
    source = write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    spec = Cifar10(root=str(tmp_path), validation=10)
    object.__setattr__(spec, "source", lambda: source)  # torchvision with the MD5s of the made-up files
    with pytest.raises(DatasetError, match="corrupted"):
        spec.load(seed=0)


# --- MNIST and Fashion-MNIST: idx files


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, *, train: int = TRAIN, test: int = TEST) -> None:
    folder.mkdir(parents=True)
    images, labels = images_and_labels(train + test, (28, 28), 10, seed=1)
    for part, row in (("train", slice(None, train)), ("t10k", slice(train, None))):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images[row]))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[row]))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_are_read(tmp_path: Path, name: str, folder: str) -> None:
    write_idx(tmp_path / folder / "raw")
    data = load_data({"name": name, "root": str(tmp_path), "validation": 10, "train": 25, "test": 15}, seed=0)
    assert data.input_shape == (1, 28, 28) and len(data.classes) == 10 and data.name == name
    assert (len(data.train), len(data.validation), len(data.test)) == (25, 10, 15)
    whole = load_data({"name": name, "root": str(tmp_path), "validation": 10}, seed=0)
    images, labels = images_and_labels(TRAIN + TEST, (28, 28), 10, seed=1)
    assert_same_examples([whole.train, whole.validation], images[:TRAIN, None], labels[:TRAIN])
    assert_same_examples([whole.test], images[TRAIN:, None], labels[TRAIN:])
    assert torch.equal(whole.train.images[:25], data.train.images)


def test_the_digest_does_not_depend_on_where_the_files_lie(tmp_path: Path) -> None:
    digests = set()
    for where in ("here", "there"):
        write_idx(tmp_path / where / "MNIST" / "raw")
        digests.add(load_data({"name": "mnist", "root": str(tmp_path / where), "validation": 10}, seed=0).digest)
    assert len(digests) == 1


@pytest.mark.parametrize("state", ["missing", "empty"])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_missing_or_empty_folder_says_what_is_expected(tmp_path: Path, name: str, state: str) -> None:
    root = tmp_path / "data"
    if state == "empty":
        root.mkdir()
    with pytest.raises(DatasetError) as caught:
        load_data({"name": name, "root": str(root)}, seed=0)
    message = str(caught.value)
    assert str(root) in message and "dataset.download = true" in message
    assert ("no such folder" if state == "missing" else "is empty") in message
    assert {"mnist": "MNIST/raw/train-images-idx3-ubyte", "cifar100": "cifar-100-python/meta"}.get(name, "") in message


def test_a_truncated_idx_file_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw)
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DatasetError, match="mnist cannot be read"):
        load_data({"name": "mnist", "root": str(tmp_path), "validation": 10}, seed=0)


def test_images_without_their_labels_are_refused(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    write_idx(raw)
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(TRAIN - 1)))
    with pytest.raises(DatasetError, match=r"40 images but 39 labels"):
        load_data({"name": "mnist", "root": str(tmp_path), "validation": 10}, seed=0)


# --- Downloads, from a server on loopback


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def serve_fashion_mnist(folder: Path, address: str) -> type[FashionMnist]:
    write_idx(folder / "raw")
    resources = []
    for path in sorted((folder / "raw").iterdir()):
        packed = folder / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((packed.name, md5(packed)))
    source = type("FashionMNIST", (tv.FashionMNIST,), {"mirrors": [address], "resources": resources})

    class Served(FashionMnist):
        def source(self) -> type[Any]:
            return source

    return Served


def test_download_fetches_checks_and_is_not_repeated(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    spec = serve_fashion_mnist(folder, address)(root=str(tmp_path / "new" / "data"), download=True, validation=10)
    first = spec.load(seed=0)
    for path in folder.glob("*.gz"):
        path.unlink()
    assert spec.load(seed=0).digest == first.digest
    assert socket.getdefaulttimeout() is None


def test_download_of_altered_files_is_refused(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    spec = serve_fashion_mnist(folder, address)(root=str(tmp_path / "data"), download=True, validation=10)
    packed = folder / "t10k-labels-idx1-ubyte.gz"
    packed.write_bytes(packed.read_bytes() + b"x")
    with pytest.raises(DatasetError, match=r"dataset\.download: fashion_mnist could not be downloaded .*t10k-labels-idx1-ubyte"):
        spec.load(seed=0)


def test_cifar_archive_is_downloaded_and_unpacked(tmp_path: Path, served: tuple[Path, str]) -> None:
    folder, address = served
    source = write_cifar10(tmp_path / "made")
    archive = folder / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    source.url, source.tgz_md5 = address + source.filename, md5(archive)

    class Served(Cifar10):
        def source(self) -> type[Any]:
            return source  # type: ignore[no-any-return]

    assert len(Served(root=str(tmp_path / "data"), download=True, validation=10).load(seed=0).train) == 30


@pytest.mark.parametrize("member", [Mnist, Cifar10])
def test_download_without_a_network_says_so(tmp_path: Path, member: type[Any]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/"
    source = type(member().source().__name__, (member().source(),), {"mirrors": [closed], "url": closed})

    class Unreachable(member):  # type: ignore[misc,valid-type]
        name: ClassVar[str] = member.name

        def source(self) -> type[Any]:
            return source

    with pytest.raises(DatasetError) as caught:
        Unreachable(root=str(tmp_path), download=True).load(seed=0)
    message = str(caught.value)
    assert "could not be downloaded" in message and "Connection refused" in message and "check the network" in message
    assert member.files[0] in message and "\n" not in message


# --- Real MNIST


def mnist(root: Path, **fields: Any) -> Data:
    return load_data({"name": "mnist", "root": str(root), **fields}, seed=0)


def test_real_mnist_has_the_published_statistics(real_data: Path) -> None:
    data = mnist(real_data)
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.mean.item() == pytest.approx(0.1307, abs=5e-4) and data.std.item() == pytest.approx(0.3081, abs=5e-4)


def test_more_real_mnist_than_there_is_is_refused_with_both_numbers(real_data: Path) -> None:
    with pytest.raises(DatasetError, match=r"70000 training examples asked for, but there are 55000 \(60000 less 5000"):
        mnist(real_data, train=70_000)


def test_the_digest_of_real_mnist_takes_under_a_second(real_data: Path) -> None:
    data = mnist(real_data)
    start = time.perf_counter()
    assert data_digest(data.classes, (data.train, data.validation, data.test)) == data.digest
    assert time.perf_counter() - start < 1
