"""A daemon of `tests.serving_daemon` that does not look at dates when it starts: as one whose certificate has expired since."""

from __future__ import annotations

from repsearch import credentials
from repsearch.serving.cli import build_app, run

if __name__ == "__main__":
    credentials._check_dates = lambda *_: None  # type: ignore[assignment]
    run(build_app("searcher", "tests.serving_jobs:run_job"))
