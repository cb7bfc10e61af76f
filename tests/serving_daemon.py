"""A daemon of either service with the jobs of `serving_jobs`; `python -m tests.serving_daemon searcher serve ...`."""

from __future__ import annotations

import sys

from repsearch.serving.cli import build_app, run

if __name__ == "__main__":
    run(build_app(sys.argv.pop(1), "tests.serving_jobs:run_job"))
