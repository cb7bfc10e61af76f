"""Killed at any failpoint, and resumed, a run comes to what it comes to when it is left alone: every failpoint, one by one.

What the undisturbed run comes by, and how often, says what there is to kill at: the first time, and one in the middle.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from repsearch.failpoints import POINTS, TRACE, VARIABLE
from tests.failpoint_runs import KINDS, Bench, Facts, facts, problems, reached

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

INTERRUPTED_AT = {"closed": "round.search.after@2", "streaming": "segment.commit.after@2"}
"""Where the run is killed that is then killed again while it is resumed."""
TRACKED = {name for name in POINTS if name.startswith("tracking.")}
killed_at: set[str] = set()


class Undisturbed:
    """What a run of each kind comes to, and how often each program comes by each failpoint."""

    def __init__(self, bench: Bench) -> None:
        self.facts: dict[str, Facts] = {}
        self.reached: dict[tuple[str, str], Counter[str]] = {}
        for kind in KINDS:
            for program in ("searcher", "learner", "orchestrator"):
                bench.trace(program).unlink(missing_ok=True)
            run, code = bench.start(kind, **{TRACE: str(bench.trace("orchestrator"))})
            assert code == 0, bench.output.read_text()
            self.facts[kind] = facts(run)
            self.reached |= {(kind, p): reached(bench.trace(p)) for p in ("searcher", "learner", "orchestrator")}
            assert problems(bench, run, self.facts[kind]) == []

    def moments(self, kind: str, program: str) -> list[tuple[str, int]]:
        """Failpoints, and which time."""
        found = self.reached[kind, program]
        return [(point, count) for point, often in found.items() for count in sorted({1, often // 2 + 1})]


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Undisturbed:
    return Undisturbed(bench)


def to_the_end(bench: Bench, kind: str, run: Path) -> list[str]:
    """Resume `run`, or start it where it is not there yet; return what goes wrong."""
    code = bench.resume(run) if (run / "run.json").exists() else bench.repeat(kind, run)[1]
    return [] if code == 0 else [f"the orchestrator ends with {code}: {bench.output.read_text()[-1000:]}"]


@pytest.mark.fault(4)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_orchestrator(bench: Bench, undisturbed: Undisturbed, kind: str) -> None:
    found = {}
    for point, count in undisturbed.moments(kind, "orchestrator"):
        run, code = bench.start(kind, **{VARIABLE: f"{point}@{count}"})
        if code == -signal.SIGKILL:
            killed_at.add(point)
            wrong = to_the_end(bench, kind, run) or problems(bench, run, undisturbed.facts[kind])
        else:
            # Streamed rounds are committed by a thread, so how often some places are come by varies.
            wrong = [f"not killed: {code}"] if count == 1 or code else []
        if wrong:
            found[f"{point}@{count}"] = wrong
    assert found == {}


@pytest.mark.fault(4)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_while_it_is_resumed(bench: Bench, undisturbed: Undisturbed, kind: str) -> None:
    bench.trace("orchestrator").unlink(missing_ok=True)
    run, code = bench.start(kind, **{VARIABLE: INTERRUPTED_AT[kind]})
    assert (code, bench.resume(run, **{TRACE: str(bench.trace("orchestrator"))})) == (-signal.SIGKILL, 0)
    found = {}
    for point in reached(bench.trace("orchestrator")):
        run, _ = bench.start(kind, **{VARIABLE: INTERRUPTED_AT[kind]})
        code = bench.resume(run, **{VARIABLE: point})
        killed_at.add(point)
        wrong = [f"not killed: {code}"] if code != -signal.SIGKILL else to_the_end(bench, kind, run)
        wrong = wrong or problems(bench, run, undisturbed.facts[kind])
        if wrong:
            found[point] = wrong
    assert found == {}


@pytest.mark.parametrize(
    "program", [pytest.param("searcher", marks=pytest.mark.fault(1)), pytest.param("learner", marks=pytest.mark.fault(3))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_daemon(bench: Bench, undisturbed: Undisturbed, kind: str, program: str) -> None:
    """The process that computes and writes; the orchestrator goes on, or ends and is resumed."""
    found = {}
    for point, count in undisturbed.moments(kind, program):
        arm = bench.arm(program, f"{point}@{count}")
        run, code = bench.start(kind)
        wrong = ["not killed"] if arm.exists() else []
        bench.calm()
        killed_at.add(point)
        wrong += (to_the_end(bench, kind, run) if code else []) or problems(bench, run, undisturbed.facts[kind])
        if wrong:
            found[f"{point}@{count}"] = wrong
    assert found == {}


def test_every_failpoint_was_killed_at(bench: Bench, undisturbed: Undisturbed) -> None:
    """To be run with the tests above; those of tracking are in `test_tracking_resume`."""
    assert sorted(set(POINTS) - killed_at - TRACKED) == []
