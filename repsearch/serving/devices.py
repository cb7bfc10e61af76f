"""The device a daemon computes on. Runs in the compute process; torch is imported only for devices other than the CPU."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from repsearch.errors import DaemonError


def describe(device: str) -> str:
    """Return the name of the hardware behind `device`; DaemonError if this machine does not have it."""
    if device == "cpu":
        return _processor()
    import torch

    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
        return torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type
    except Exception as error:  # torch raises RuntimeError, AssertionError, AcceleratorError and others here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DaemonError(f"device {device!r} is not there ({reason}); available: {', '.join(_available())}") from None


def limit_threads(threads: int) -> None:
    """Make torch, if the job function imported it, use `threads` threads."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(threads)


def _available() -> list[str]:
    import torch

    cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cards, *(["mps"] if torch.backends.mps.is_available() else [])]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
