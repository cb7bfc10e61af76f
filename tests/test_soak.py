"""Some seeds of `tests.soak`, with few rounds; every seed that ever failed is among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.failpoint_runs import Bench
from tests.soak import soak

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

SEEDS = (1, 2, 4)
ROUNDS = 10


@pytest.mark.fault(33)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_must_hold_holds_whatever_happens(bench: Bench, tmp_path: Path, seed: int) -> None:
    soaked = soak(bench, rounds=ROUNDS, seed=seed, out=tmp_path)
    assert soaked.wrong == [], f"seed {seed}: {soaked.done}"
    assert "kill_daemon" in soaked.done and len(set(soaked.done)) > 1, soaked.done
    assert (tmp_path / "soak.png").is_file()
