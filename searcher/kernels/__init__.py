"""Fused GPU kernels of search, written in Triton.

`children` makes evolution's children in one kernel: crossover, mutation, smoothing and normalisation without an intermediate in memory.
The kernels have been run in Triton's interpreter on a CPU and never on a GPU (docs/design/0008-gpu-kernels.md), so `search.kernels` is
off by default. Triton is imported when a kernel is first asked for: the package imports without it.
"""

from __future__ import annotations

from searcher.kernels.children import Philox, Table, children
from searcher.kernels.machine import available, require_kernels

__all__ = ["Philox", "Table", "available", "children", "require_kernels"]
