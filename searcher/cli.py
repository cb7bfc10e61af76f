"""The command `searcher`."""

from __future__ import annotations

from repsearch.serving.cli import build_app, run


def check_remote(location: str) -> None:
    """Raise `StoreError` unless the object store at `location` can be used."""
    # Here, because help needs no numpy.
    from store.opening import check_remote

    check_remote(location)


app = build_app("searcher", "searcher.jobs:run_job", check_remote)


def main() -> None:
    """Entry point of the `searcher` script and of `python -m searcher`."""
    run(app)
