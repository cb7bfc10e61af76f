"""The command `searcher`."""

from __future__ import annotations

from repsearch.serving.cli import build_app, run

app = build_app("searcher", "searcher.jobs:run_job")


def main() -> None:
    """Entry point of the `searcher` script and of `python -m searcher`."""
    run(app)
