"""docs/guarantees.md names tests that are there, and something for each promise; so do other pages."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUARANTEES = ROOT / "docs/guarantees.md"
NAMED = re.compile(r"`(?:tests/)?(test_\w+)(?:\.py)?(?:::(test_\w+))?`")
TARGET = re.compile(r"`make ([\w-]+)`")


def promises() -> list[list[str]]:
    """Cells of each row of the table of promises."""
    lines = [line for line in GUARANTEES.read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in lines]
    assert rows[0] == ["promise", "not covered by it", "shown by"]
    return rows[1:]


@functools.cache
def names_of(path: Path) -> set[str]:
    """Names of the tests of a module."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_promise_is_shown_by_something_that_is_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert len(promises()) > 30
    for promise, _, shown in promises():
        named, made = NAMED.findall(shown), TARGET.findall(shown)
        assert named or made, f"nothing shows: {promise}"
        assert re.sub(r"`[^`]*`|[, ]", "", shown) == "", f"what is it that shows {promise!r}: {shown}"
        for module, _ in named:
            assert (ROOT / "tests" / f"{module}.py").is_file(), f"{promise}: there is no tests/{module}.py"
            assert names_of(ROOT / "tests" / f"{module}.py"), f"{promise}: tests/{module}.py has no test"
        assert set(made) <= targets, f"{promise}: make has no such target: {made}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    modules = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    functions = {name for path in (ROOT / "tests").glob("test_*.py") for name in names_of(path)}
    for module, function in NAMED.findall(page.read_text()):
        assert module in modules | functions, f"{page}: there is no test {module}"
        assert not function or function in names_of(ROOT / "tests" / f"{module}.py"), f"{page}: there is no {module}::{function}"
