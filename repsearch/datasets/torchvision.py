"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100 from files on disk, read and checked by torchvision.

Files lie under `root` in torchvision's own folders. CIFAR files are pickled; torchvision compares their MD5 with the published one
before it opens them. With `download`, missing files are fetched and their MD5 checked.
"""

from __future__ import annotations

import fcntl
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from repsearch.datasets.base import Data, Split
from repsearch.datasets.noise import LabelNoise
from repsearch.datasets.splitting import FitnessPart, assemble, choose
from repsearch.errors import DatasetError

DOWNLOAD_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class TorchvisionDataset(LabelNoise, FitnessPart):
    """What the four datasets have in common.

    root: folder with the dataset's files, in torchvision's layout; relative to the working directory of each process.
    download: fetch the files into `root` if they are not there.
    train: training examples, drawn by the run's seed; all that are left if not given.
    validation: examples split off the training set for validation, by the run's seed.
    test: test examples, drawn from the test set by the run's seed; the whole set if not given.
    """

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    root: str = "data"
    download: bool = False
    train: Annotated[int, Field(ge=1)] | None = None
    validation: Annotated[int, Field(ge=1)] = 5000
    test: Annotated[int, Field(ge=1)] | None = None

    def source(self) -> type[Any]:
        """Return torchvision's class of the dataset."""
        raise TypeError(f"{type(self).__name__} defines no source")

    def load(self, *, seed: int) -> Data:
        """Return the data, split by `seed`.

        Raises `DatasetError` if files are missing, altered or cannot be downloaded, or hold fewer examples than asked for.
        """
        pool, own_test = self._open(train=True), self._open(train=False)
        choice = choose(
            pool=len(pool.data),
            own_test=len(own_test.data),
            train=self.train,
            validation=self.validation,
            test=self.test,
            fitness=self.fitness,
            seed=seed,
        )
        train, validation = self.disturbed(
            _split(pool, choice.train), _split(pool, choice.validation), classes=len(pool.classes), seed=seed
        )
        fitness = self.disturbed_fitness(_split(pool, choice.fitness), classes=len(pool.classes), seed=seed)
        test = _split(own_test, choice.test)
        return assemble(self.name, list(pool.classes), train=train, validation=validation, test=test, fitness=fitness)

    def _open(self, *, train: bool) -> Any:
        root = Path(self.root).expanduser()
        if self.download:
            self._fetch(root)
        elif not root.is_dir() or not any(root.iterdir()):
            state = "is empty" if root.is_dir() else "no such folder"
            raise DatasetError(f"dataset.root: {root}: {state}; {self._way_out()}")
        try:
            with _known_warning_silenced():
                part = self.source()(root, train=train)
        except (RuntimeError, OSError, ValueError, AssertionError) as error:
            raise DatasetError(f"dataset.root: {root}: {self.name} cannot be read: {_one_line(error)}; {self._way_out()}") from error
        if len(part.data) != len(part.targets):
            raise DatasetError(f"dataset.root: {root}: {len(part.data)} images but {len(part.targets)} labels; {self._way_out()}")
        return part

    def _fetch(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with _exclusive(root / ".download.lock"), _socket_timeout(DOWNLOAD_TIMEOUT_S):
                self.source()(root, train=True, download=True)
        except (RuntimeError, OSError) as error:
            raise DatasetError(
                f"dataset.download: {self.name} could not be downloaded into {root}: {_one_line(error)}; "
                f"check the network, or put the files there by hand: {', '.join(self.files)}"
            ) from error

    def _way_out(self) -> str:
        return f"{self.name} needs {', '.join(self.files)}; set `dataset.root` to the folder that has them, or `dataset.download = true`"


def _idx_files(folder: str) -> tuple[str, ...]:
    return tuple(f"{folder}/raw/{part}" for part in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")) + tuple(
        f"{folder}/raw/{part}" for part in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    )


@dataclass(frozen=True, kw_only=True)
class Mnist(TorchvisionDataset):
    """MNIST: handwritten digits, 1x28x28, ten classes; 60,000 and 10,000 images."""

    name: ClassVar[str] = "mnist"
    files: ClassVar[tuple[str, ...]] = _idx_files("MNIST")

    def source(self) -> type[Any]:
        from torchvision.datasets import MNIST

        return MNIST  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class FashionMnist(TorchvisionDataset):
    """Fashion-MNIST: clothes, 1x28x28, ten classes; 60,000 and 10,000 images."""

    name: ClassVar[str] = "fashion_mnist"
    files: ClassVar[tuple[str, ...]] = _idx_files("FashionMNIST")

    def source(self) -> type[Any]:
        from torchvision.datasets import FashionMNIST

        return FashionMNIST  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Cifar10(TorchvisionDataset):
    """CIFAR-10: photographs, 3x32x32, ten classes; 50,000 and 10,000 images."""

    name: ClassVar[str] = "cifar10"
    files: ClassVar[tuple[str, ...]] = (
        *(f"cifar-10-batches-py/data_batch_{batch}" for batch in range(1, 6)),
        "cifar-10-batches-py/test_batch",
        "cifar-10-batches-py/batches.meta",
    )

    def source(self) -> type[Any]:
        from torchvision.datasets import CIFAR10

        return CIFAR10  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Cifar100(TorchvisionDataset):
    """CIFAR-100: photographs, 3x32x32, a hundred classes; 50,000 and 10,000 images."""

    name: ClassVar[str] = "cifar100"
    files: ClassVar[tuple[str, ...]] = tuple(f"cifar-100-python/{part}" for part in ("train", "test", "meta"))

    def source(self) -> type[Any]:
        from torchvision.datasets import CIFAR100

        return CIFAR100  # type: ignore[no-any-return]


def _split(part: Any, numbers_N: Tensor) -> Split:
    # MNIST keeps a tensor (N, H, W), CIFAR an array (N, H, W, C).
    images = torch.as_tensor(part.data)[numbers_N]
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.as_tensor(part.targets, dtype=torch.int64)[numbers_N])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _known_warning_silenced() -> Iterator[None]:
    # The published CIFAR pickles hold dtypes written by an old numpy, `align=0`, which numpy 2.4.0 to 2.4.4 report as deprecated.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        yield


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    # Daemons on one host may find the data missing at the same time; the second waits and then finds them.
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # urllib, under torchvision's download, takes its time limit from this default alone; without one a dead link hangs for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
