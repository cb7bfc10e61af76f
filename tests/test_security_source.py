"""Nothing is unpickled or evaluated, no shell is used, and plug-ins come from installed entry points; in the source, and by trying."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from repsearch.errors import ConfigError
from repsearch.families import FAMILIES
from scripts import audit

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("repsearch", "store", "searcher", "learner", "orchestrator", "scripts", "benchmarks")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

UNPICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "pandas", "yaml", "xmlrpc"}
EVALUATING = {"eval", "exec", "compile", "__import__"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput"}
LOADING = {"torch.load", "torch.hub.load", "torch.package.PackageImporter", "torch.jit.load", "np.load", "numpy.load", "runpy.run_path"}
IMPORTING = {
    "repsearch/families.py": "members of a family, named in the source; those of others by entry point",
    "repsearch/serving/compute.py": "the job function, named by the daemon's program",
    "scripts/make_protos.py": "the compiler of the protocol",
}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield the dotted name and the node of each call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def faults(source: str, path: str = "") -> list[str]:
    """Return what in `source` could run or unpickle what it is given."""
    tree, found = ast.parse(source), []
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {module}" for module in modules if module.partition(".")[0] in UNPICKLING]
    for name, call in calls(tree):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in EVALUATING | SHELLS | LOADING or options.get("shell") not in (None, "False") or options.get("allow_pickle") == "True":
            found.append(f"line {call.lineno}: {name}")
        constant = bool(call.args) and isinstance(call.args[0], ast.Constant)
        if name in ("importlib.import_module", "import_module") and path not in IMPORTING and not constant:
            found.append(f"line {call.lineno}: imports by name")
    return found


def test_no_source_unpickles_evaluates_or_uses_a_shell() -> None:
    assert len(SOURCES) > 150
    found = {str(path.relative_to(ROOT)): faults(path.read_text(), str(path.relative_to(ROOT))) for path in SOURCES}
    assert {path: each for path, each in found.items() if each} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import yaml; yaml.load(x)",
        "eval(x)",
        "def f():\n    exec(x)",
        "torch.load(p, weights_only=False)",
        "torch.load(p)",
        "np.load(p, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "importlib.import_module(x)",
    ],
)
def test_each_of_these_would_be_found(source: str) -> None:
    assert faults(source)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
@pytest.mark.parametrize("name", ["intruder", "intruder:Plugin", "../intruder", "os:system", "builtins:exec", "__class__"])
def test_names_in_a_configuration_import_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: object, name: str) -> None:
    """A module that can be imported, and a name that leads to it, is none the less no plug-in."""
    (tmp_path / "intruder.py").write_text("raise SystemExit('the intruder ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="unknown name"):
        family.build({"name": name})
    assert "intruder" not in sys.modules


def test_plugins_come_from_installed_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("outside", "searcher.strategies.random_search:RandomSearch", "repsearch.strategies")
    monkeypatch.setattr("repsearch.families.entry_points", lambda group: [point] if group == point.group else [])
    assert FAMILIES["strategies"].member("outside").__name__ == "RandomSearch"
    with pytest.raises(ConfigError, match="unknown name 'outside'"):
        FAMILIES["optimisers"].member("outside")


FOUND = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": "a hole"}


@pytest.mark.parametrize(
    ("libraries", "accepted", "code", "words"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], {}, 0, "1 of 1 libraries audited: 0 vulnerabilities"),
        ([{"name": "a", "version": "1", "vulns": [FOUND]}], {}, 1, "a 1: PYSEC-1, fixed in 2.0: a hole"),
        ([{"name": "a", "version": "1", "vulns": [FOUND]}], {"CVE-1": "not used"}, 0, "0 vulnerabilities, 1 accepted"),
        ([{"name": "a", "skip_reason": "not found"}], {}, 0, "libraries were NOT audited: the vulnerability service knows none of 1"),
    ],
)
def test_audit_fails_on_findings_and_says_when_it_cannot_look(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], libraries: list, accepted: dict, code: int, words: str
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.audit.accepted]\n" + "".join(f'"{key}" = "{value}"\n' for key, value in accepted.items())
    )
    answer = json.dumps({"dependencies": libraries})
    command = [sys.executable, "-c", f"print({answer!r}); raise SystemExit({code})"]
    assert audit.main(command, tmp_path / "pyproject.toml") == code
    assert words in capsys.readouterr().out


def test_audit_without_an_answer_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pyproject.toml").write_text("")
    assert audit.main([sys.executable, "-c", "raise SystemExit(1)"], tmp_path / "pyproject.toml") == 0
    assert "libraries were NOT audited: pip-audit gave no answer" in capsys.readouterr().out
