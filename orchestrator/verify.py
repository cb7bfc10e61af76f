"""Whether everything that a run refers to is there and unaltered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from store import open_store
from store.verification import verify_run


def verify(folder: Path) -> list[dict[str, Any]]:
    """Return what is wrong with the run in `folder`: path and problem of each finding; empty if nothing is."""
    return [{"path": finding.path, "problem": finding.problem} for finding in verify_run(open_store(folder))]
