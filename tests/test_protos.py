"""The committed stubs are what `proto/` generates, and both services speak the same protocol."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from repsearch.rpc.v1 import jobs_pb2

ROOT = Path(__file__).resolve().parent.parent


def test_stubs_are_up_to_date() -> None:
    pytest.importorskip("grpc_tools", reason="needs the dev extra")
    command = [sys.executable, "scripts/make_protos.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_both_services_have_the_same_calls() -> None:
    services = jobs_pb2.DESCRIPTOR.services_by_name
    calls = {
        name: [(m.name, m.input_type.name, m.output_type.name, m.server_streaming) for m in service.methods]
        for name, service in services.items()
    }
    assert set(calls) == {"Searcher", "Learner"}
    assert calls["Searcher"] == calls["Learner"]


def test_enums_have_an_unspecified_zero() -> None:
    for enum in jobs_pb2.DESCRIPTOR.enum_types_by_name.values():
        assert enum.values_by_number[0].name.endswith("_UNSPECIFIED")
