"""The command `learner`."""

from __future__ import annotations

from repsearch.serving.cli import build_app, run

app = build_app("learner", "learner.jobs:run_job")


def main() -> None:
    """Entry point of the `learner` script and of `python -m learner`."""
    run(app)
