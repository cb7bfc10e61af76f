"""Environment of a process that computes with a given number of CPU threads; to be set before torch is loaded."""

from __future__ import annotations

import os

_SPINS = "10000"
"""How long an OpenMP thread spins for more work: some 0.1 ms. By default it is some ms, in which it takes the core from other threads: of
the two threads of a compiled search half their speed. Operations that follow one another come within it."""


def thread_environment(threads: int) -> dict[str, str]:
    """Return the variables that limit numerical libraries to `threads` threads, and keep idle ones from spinning for long."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", _SPINS), **limits}
