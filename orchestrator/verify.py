"""Whether everything that a run refers to is there and unaltered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.remote import store_of
from store import open_store
from store.verification import verify_run


def verify(run: Path | str) -> list[dict[str, Any]]:
    """Return what is wrong with a run, given by its folder or the location of its store: path and problem of each finding."""
    store = store_of(run, late_s=0) if isinstance(run, Path) else open_store(run, late_s=0)
    return [{"path": finding.path, "problem": finding.problem} for finding in verify_run(store)]
