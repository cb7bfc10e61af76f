"""Where the kernels can run."""

from __future__ import annotations

import importlib.util

import torch

from repsearch.errors import ConfigError

LEAST_CAPABILITY = (8, 0)
"""Compute capability from which Triton compiles bfloat16 natively."""


def available(device: torch.device) -> bool:
    """Return whether `children` can run on tensors of `device`: a GPU with Triton, or any device under Triton's interpreter."""
    return _obstacle(device) is None


def require_kernels(device: torch.device) -> None:
    """Raise `ConfigError` naming `search.kernels` unless the kernels run on `device`."""
    obstacle = _obstacle(device)
    if obstacle is not None:
        raise ConfigError(f"search.kernels: {obstacle}; set search.kernels = false, or searcher.device = 'cuda'")


def _obstacle(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (it comes with torch's CUDA wheels)"
    if interpreted():
        return None
    if device.type != "cuda":
        return f"the kernels run on a GPU, and the searcher computes on {str(device)!r}"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < LEAST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, below {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}"
    return None


def interpreted() -> bool:
    """Return whether kernels run in Triton's interpreter (TRITON_INTERPRET=1 in the environment when the process starts)."""
    import triton

    return bool(triton.knobs.runtime.interpret)
