"""Failpoints: which there are, how one is armed, and that no durable write is without one."""

from __future__ import annotations

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from repsearch.errors import ConfigError
from repsearch.failpoints import POINTS, TRACE, VARIABLE, armed, parse

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("repsearch", "store", "searcher", "learner", "orchestrator")
COME_BY = "from repsearch.failpoints import reach\nfor _ in range(3): reach('journal.open.before'); print('by', flush=True)"

WRITING = {
    *("write_bytes", "write_text", "unlink", "rmdir", "rename", "renames", "touch", "mkdir", "makedirs", "rmtree", "remove_tree"),
    *("symlink_to", "hardlink_to", "link", "symlink", "truncate", "ftruncate", "pwrite", "copyfile", "copytree", "move"),
}
"""Methods and functions that change what is on the disk, whatever they are called on; `open` and `replace` depend on their arguments."""
SAVING = {("torch", "save"), ("np", "save"), ("np", "savez"), ("json", "dump"), ("pickle", "dump")}

WITHOUT = {
    "repsearch/failpoints.py:Armed.reach": "the trace of a test",
    "repsearch/failpoints.py:Armed._due": "the file of a test",
    "store/files.py:_write_temporary": "between `before` and `written` of the functions that call it",
    "store/local_files.py:LocalFile.__init__": "between `store.group.before` and `store.group.flushed`",
    "store/local_files.py:LocalFiles.output": "between `store.group.before` and `store.group.flushed`",
    "store/local_files.py:LocalFiles.write": "the folder of a pack, between `store.pack.before` and `store.replace.before`",
    "repsearch/config/reference.py:main": "a page of the documentation, not of a run",
    "repsearch/datasets/torchvision.py:_exclusive": "a lock",
    "repsearch/datasets/torchvision.py:TorchvisionDataset._fetch": "the folder of downloads, which torchvision checks itself",
    "repsearch/serving/paths.py:prepare_root": "the folder that runs lie in",
    "orchestrator/certificates.py:make_certificates": "made by a command of its own, of no run",
    "orchestrator/certificates.py:_write": "made by a command of its own, of no run",
    "orchestrator/control.py:Control.__exit__": "what is waited for, which nothing is computed from",
    "orchestrator/control.py:Control._take": "a request, which a crash loses or leaves to nobody",
    "orchestrator/control.py:write_json": "requests and what is waited for, which nothing is computed from",
    "orchestrator/steering.py:ask": "a request, which a crash loses or leaves to nobody",
    "orchestrator/local.py:_Daemon.__init__": "a daemon's log",
    "orchestrator/sweeps/pool.py:Workers.__enter__": "the folder that trials lie in",
    "orchestrator/sweeps/pool.py:_Process.__init__": "a worker's log",
    "orchestrator/sweeps/running.py:start": "a folder, empty until its first document",
    "orchestrator/evidence/results.py:Results.put": "a folder, empty until its first document",
    "orchestrator/evidence/running.py:opened": "a folder, empty until its first document",
    "orchestrator/studies/base.py:write_findings": "a folder, empty until its first table",
    "orchestrator/tracking/connect.py:connect": "the folder of MLflow's database",
    "orchestrator/tracking/connect.py:_locked": "a lock",
    "orchestrator/tracking/state.py:try_lock": "a lock",
}
"""Places that write without a failpoint before and after, and why."""


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "rpc" not in path.relative_to(ROOT).parts:
                yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST, list[ast.Call]]]:
    """Every function, and the module itself, with the calls that are its own."""
    own: list[ast.Call] = []
    below: list[tuple[str, ast.AST]] = []
    stack = list(ast.iter_child_nodes(tree))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            below.append((f"{prefix}{node.name}", node))
            continue
        if isinstance(node, ast.Call):
            own.append(node)
        stack.extend(ast.iter_child_nodes(node))
    yield prefix.removesuffix("."), tree, own
    for name, node in below:
        yield from functions(node, f"{name}.")


def writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    base = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""
    words = [argument.value for argument in (*call.args, *(k.value for k in call.keywords)) if isinstance(argument, ast.Constant)]
    if name == "open":
        flags = "O_CREAT" in ast.unparse(call)
        return flags or any(isinstance(word, str) and re.fullmatch(r"[rwxabt+]*[wxa+][rwxabt+]*", word) is not None for word in words)
    if name == "replace":  # of a path: one argument; of a text: two
        return isinstance(call.func, ast.Attribute) and (base == "os" or (len(call.args) == 1 and not call.keywords))
    return (base, name) in SAVING or (name in WRITING and not (name == "truncate" and base == "np"))


def is_reach(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "reach"


def test_every_durable_write_has_a_failpoint_before_and_after() -> None:
    bare, found = [], set()
    for file, tree in sources():
        for name, _, calls in functions(tree):
            reached = [call.lineno for call in calls if is_reach(call)]
            for call in filter(writes, calls):
                found.add(f"{file}:{name}")
                between = reached and min(reached) < call.lineno < max(reached)
                if not between and f"{file}:{name}" not in WITHOUT:
                    bare.append(f"{file}:{call.lineno} in {name}: {ast.unparse(call)}")
    assert bare == [], "put a failpoint before and after, or write through `store.files`"
    assert {"store/files.py:create_file", "store/files.py:replace_file", "orchestrator/journal.py:Journal.__init__"} <= found
    assert set(WITHOUT) <= found, "these write no longer"


def test_each_name_is_in_the_registry_and_in_the_source() -> None:
    used: set[str] = set()
    for file, tree in sources():
        for _, _, calls in functions(tree):
            for call in filter(is_reach, calls):
                assert isinstance(call.args[0], ast.Constant), f"{file}:{call.lineno}: give the name as it is"
                used.add(call.args[0].value)
    assert used == set(POINTS)


def test_nothing_is_armed_by_default() -> None:
    assert armed({}) is None
    assert armed({VARIABLE: ""}) is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("journal.opened", r"REPSEARCH_FAILPOINT: there is no failpoint 'journal.opened'; known: store.folder.before, "),
        ("journal.open.before@0", "'journal.open.before@0': the count '0' is not a number from 1 on"),
        ("journal.open.before@", "the count '' is not a number from 1 on; give journal.open.before@1"),
    ],
)
def test_what_is_no_failpoint_is_refused(text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        parse(text)


def come_by(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COME_BY], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(("spec", "survived"), [("journal.open.before", 0), ("journal.open.before@3", 2), ("journal.open.after", 3)])
def test_a_process_kills_itself_at_the_count(spec: str, survived: int) -> None:
    ended = come_by(**{VARIABLE: spec})
    assert ended.stdout.count("by") == survived
    assert ended.returncode == (0 if survived == 3 else -signal.SIGKILL)


def test_a_file_arms_one_process_only(tmp_path: Path) -> None:
    spec, trace = tmp_path / "spec", tmp_path / "trace"
    spec.write_text("journal.open.before@2\n")
    environment = {VARIABLE: f"@{spec}", TRACE: str(trace)}
    assert come_by(**environment).returncode == -signal.SIGKILL
    assert not spec.exists()
    assert come_by(**environment).returncode == 0
    assert trace.read_text().split() == ["journal.open.before"] * 5


@pytest.mark.parametrize("program", ["orchestrator", "searcher"])
def test_the_programs_refuse_an_unknown_failpoint_when_they_start(program: str) -> None:
    command = [sys.executable, "-m", program, "--version"]
    environment = {**os.environ, VARIABLE: "journal.opened"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, "there is no failpoint 'journal.opened'" in ended.stderr) == (2, True)
