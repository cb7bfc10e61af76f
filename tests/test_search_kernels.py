"""The fused kernels: their cases in Triton's interpreter, that they compile for GPUs, and that they are refused elsewhere."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from repsearch.errors import ConfigError
from repsearch.rpc.v1 import jobs_pb2
from searcher.jobs import run_job
from searcher.kernels import Table, available, children
from searcher.kernels.children import NORMALISE_EPS, Layout
from searcher.kernels.evolution import with_kernels
from searcher.strategies import evolution
from tests.learner_support import Recorder, digits_config, request_for

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


@pytest.mark.slow
def test_kernels_equal_the_reference_in_the_interpreter() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton comes with torch's CUDA wheels")
    # The interpreter is chosen when Triton is imported, for the whole process.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernel_cases.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


@pytest.mark.parametrize(
    ("capability", "storage", "shape", "table", "passes"),
    [(80, "bf16", (16, 13, 13), True, 0), (90, "fp16", (16, 13, 13), False, 5), (90, "fp32", (70, 13, 13), True, 0)],
)
def test_kernels_compile_for_a_gpu(
    capability: int, storage: str, shape: tuple[int, int, int], table: bool, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="triton comes with torch's CUDA wheels")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from searcher.kernels import fused

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    layout = Layout.of(shape[0], shape[1:], smoothed=passes > 0)
    flags = {"DRAWN": True, "TABLE": table, "SMOOTH_MUTATION": passes > 0, "SMOOTH_CHILD": False, "RECENTRE": False}
    sizes = {"T": layout.T, "TILES": -(-shape[0] // layout.T), "HP": layout.padded_H, "WP": layout.padded_W}
    constants: dict[str, Any] = {"EPS": NORMALISE_EPS, **sizes, **flags}
    pointers = {
        "pool": storage,
        "out": storage,
        "keys": "i64",
        "ones": "i64",
        "twos": "i64",
        "table": "fp32",
        "down": "fp32",
        "across": "fp32",
    }
    signature = {name: "i32" for name in fused.children_kernel.arg_names if name not in constants}
    signature |= {name: f"*{kind}" for name, kind in pointers.items()} | {"strength": "fp32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=fused.children_kernel, signature=signature, constexprs=constants)
    options = {"num_warps": layout.warps, "enable_fp_fusion": True}
    compiled = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 96 * 1024


def test_the_package_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import searcher.jobs, searcher.kernels.evolution"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    code = "import sys; import searcher.jobs; sys.exit('searcher.kernels.fused' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_the_kernel_normalises_as_the_reference_does() -> None:
    assert NORMALISE_EPS == evolution.NORMALISE_EPS


def test_on_a_cpu_the_kernels_are_not_available_and_are_refused() -> None:
    assert not available(CPU)
    with pytest.raises(ValueError, match="the kernels do not run on 'cpu'"):
        children(
            torch.zeros(1, 2, 1, 4),
            keys_B=torch.zeros(1, dtype=torch.int64),
            counter=0,
            count=1,
            strength=1.0,
            mutation=Table(torch.zeros(9, 4)),
            map_shape=(2, 2),
        )


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({}, r"search\.kernels: (the kernels run on a GPU|triton is not installed).*; set search\.kernels = false"),
        ({"strategy": {"name": "none"}}, r"search\.kernels: OwnRepresentation has no kernels; set search\.kernels = false"),
    ],
)
def test_the_searcher_refuses_kernels_that_cannot_serve(search: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = digits_config(search={"kernels": True, **search})
    with pytest.raises(ConfigError, match=message):
        run_job(request_for(config, check=jobs_pb2.CheckSpec()), Recorder(store_root=tmp_path))


def test_other_strategies_have_no_kernels() -> None:
    with pytest.raises(ConfigError, match=r"search\.kernels: object has no kernels"):
        with_kernels(object(), CPU)  # type: ignore[arg-type]
