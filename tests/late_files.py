"""Files of a shared folder as several hosts see them: what another host wrote is seen late, each file and each listing in its own time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from store.access import Output
from store.local_files import LocalFiles


@dataclass
class Clock:
    """Time that passes when somebody waits."""

    now: float = 0.0

    def time(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Share:
    """A folder shared by hosts; a file is read up to `late_s`, and listed up to twice as long, after another host wrote it."""

    folder: Path
    late_s: float
    seed: int = 0
    clock: Clock = field(default_factory=Clock)
    written: dict[str, tuple[str, float]] = field(default_factory=dict)

    def wrote(self, host: str, key: str) -> None:
        self.written[key] = (host, self.clock.now)

    def sees(self, host: str, key: str, *, listed: bool) -> bool:
        writer, at = self.written.get(key, (host, 0.0))
        share = random.Random(f"{self.seed}/{host}/{key}/{listed}").random()
        return writer == host or self.clock.now >= at + self.late_s * share * (2 if listed else 1)


class LateFiles:
    """`Files` as `host` sees them."""

    def __init__(self, share: Share, host: str) -> None:
        self._share, self._host, self._files = share, host, LocalFiles(share.folder)

    def __str__(self) -> str:
        return str(self._files)

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if not self._share.sees(self._host, key, listed=False):
            raise FileNotFoundError(key)
        return self._files.read(key, start, length)

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        sizes = zip(keys, self._files.sizes(keys), strict=True)
        return [size if self._share.sees(self._host, key, listed=False) else None for key, size in sizes]

    def write(self, key: str, data: bytes, *, create: bool, durable: bool = True) -> bool:
        # Creating asks the server, which knows.
        done = self._files.write(key, data, create=create, durable=durable)
        if done:
            self._share.wrote(self._host, key)
        return done

    def output(self, key: str) -> Output:
        self._share.wrote(self._host, key)
        return self._files.output(key)

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        names, folders = self._files.entries(folder)
        shown = self.below(folder)
        prefix = f"{folder}/" if folder else ""
        return [n for n in names if f"{prefix}{n}" in shown], [n for n in folders if any(k.startswith(f"{prefix}{n}/") for k in shown)]

    def below(self, folder: str) -> list[str]:
        return [key for key in self._files.below(folder) if self._share.sees(self._host, key, listed=True)]

    def remove(self, key: str, *, durable: bool) -> None:
        self._files.remove(key, durable=durable)

    def remove_folder(self, folder: str, *, durable: bool) -> None:
        self._files.remove_folder(folder, durable=durable)

    def flush_folder(self, folder: str) -> None:
        self._files.flush_folder(folder)

    def settle(self, keys: Sequence[str]) -> None:
        self._files.settle(keys)
