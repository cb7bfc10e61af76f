"""Help and light commands load nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "mlflow", "zarr", "grpc", "numpy")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["resume", "--help"]])
def test_nothing_heavy_is_loaded(arguments: list[str]) -> None:
    call = f"sys.argv = ['orchestrator', *{arguments!r}]\ntry:\n    orchestrator.cli.main()\nexcept SystemExit: pass" if arguments else ""
    code = f"import sys, orchestrator.cli\n{call}\nsys.exit(','.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
