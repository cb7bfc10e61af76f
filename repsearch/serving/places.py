"""Where a daemon's store is: a folder, or a place in an object store. Both have the part of `Path` that daemons use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from repsearch.errors import StoreError

REMOTE = "s3://"


@dataclass(frozen=True)
class Remote:
    """A place in an object store, such as `s3://bucket/runs`; it has no links, so the text of a path says where it leads."""

    location: str

    def __str__(self) -> str:
        return self.location

    def __truediv__(self, path: str) -> Remote:
        return Remote(path if path.startswith(REMOTE) else f"{self.location}/{path}")

    def holds(self, other: Remote) -> bool:
        """Return whether `other` lies inside."""
        parts = other.location.removeprefix(f"{self.location}/").split("/")
        return other.location.startswith(f"{self.location}/") and not any(part in ("", ".", "..") for part in parts)


Place = Path | Remote


def place(text: str) -> Place:
    """Return the place that `text` names."""
    return Remote(text.rstrip("/")) if text.startswith(REMOTE) else Path(text)


def refuse_remote(location: str) -> None:
    """Raise `StoreError`: what a daemon does whose jobs know folders only."""
    raise StoreError(f"store root {location!r}: this daemon's jobs know folders only; give --store a path")
