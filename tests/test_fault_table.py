"""The table that ends `make faults`: a case that does not hold, or that no test covers, fails it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault_table import CASES

TESTS = Path(__file__).parent
MARK = re.compile(r"mark\.fault\(([\d, ]+)\)")
EACH = """
import pytest
@pytest.mark.parametrize("case", [pytest.param(n, marks=pytest.mark.fault(n)) for n in range(1, 34) if n not in {left}])
def test_case(case):
    {body}
"""


def marked() -> set[int]:
    """Cases that some test is marked with."""
    return {int(number) for path in TESTS.glob("test_*.py") for numbers in MARK.findall(path.read_text()) for number in numbers.split(",")}


def test_every_case_has_a_test() -> None:
    assert set(CASES) == set(range(1, 34)), "the cases are those of the list of faults, 1 to 33"
    assert marked() == set(CASES)


@pytest.mark.parametrize(
    ("left", "body", "code", "verdict"),
    [
        ((), "pass", 0, "held: 33"),
        ((7,), "pass", 1, "NOT COVERED: 1"),
        ((), "pytest.skip('no means') if case == 7 else None", 1, "NOT COVERED: 1"),
        ((), "assert case != 7", 1, "NOT HELD: 1"),
    ],
    ids=["held", "not covered", "skipped", "not held"],
)
def test_the_table_ends_the_output_and_what_does_not_hold_fails(
    tmp_path: Path, left: tuple[int, ...], body: str, code: int, verdict: str
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = fault(number)\n")
    (tmp_path / "test_cases.py").write_text(EACH.format(left=left, body=body))
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.fault_table", "-m", "fault", "."]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout
    *_, table, caption = done.stdout.strip().split("fault cases")[-1].splitlines()
    assert table.startswith("└") and verdict in caption, done.stdout
