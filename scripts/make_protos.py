"""Generate the stubs in `repsearch/rpc/v1` from `proto/`; with `--check`, fail if the committed ones differ.

Needs grpcio-tools at the version that pyproject.toml pins: newer generated code refuses older runtimes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "proto"
PACKAGE = "repsearch/rpc/v1"
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")


def generate(destination: Path) -> None:
    """Write the stubs of every file below `proto/` into `destination`."""
    protoc: Any = importlib.import_module("grpc_tools.protoc")
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    includes = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
    outputs = [f"--python_out={destination}", f"--pyi_out={destination}", f"--grpc_python_out={destination}"]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        raise SystemExit("protoc refused proto/: see its message above")
    for stub in stubs(destination):
        if stub.name.endswith("_pb2_grpc.py") and "def __init__" not in stub.read_text():
            stub.unlink()  # a file without a service


def stubs(root: Path) -> list[Path]:
    """Stub files below `root`, sorted."""
    return sorted(path for pattern in PATTERNS for path in (root / PACKAGE).glob(pattern))


def drift() -> list[str]:
    """Names of committed stubs that differ from what `proto/` generates, are missing, or have no source."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.name: path.read_bytes() for path in stubs(Path(folder))}
    committed = {path.name: path.read_bytes() for path in stubs(ROOT)}
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def main() -> int:
    """Run from the command line; exit code 1 on drift."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    if not parser.parse_args().check:
        for stub in stubs(ROOT):
            stub.unlink()
        generate(ROOT)
        return 0
    names = drift()
    if names:
        print(f"{PACKAGE}: not what proto/ generates: {', '.join(names)}; run `make protos` and commit the result", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
