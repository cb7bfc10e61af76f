"""Killed at any failpoint, and resumed, a run comes to what it comes to when it is left alone: every failpoint, one by one.

What the undisturbed run comes by, and how often, says what there is to kill at: the first time, and one in the middle. A test is one of
several parts of these moments, so that workers share them.
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
PARTS = 4


class Undisturbed:
    """What a run of each kind comes to, and how often each program comes by each failpoint."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._resumed: dict[str, list[str]] = {}
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

    def resumed(self, kind: str) -> list[str]:
        """Failpoints that an orchestrator comes by which resumes a run killed at `INTERRUPTED_AT`."""
        if kind not in self._resumed:
            trace = self._bench.trace("orchestrator")
            trace.unlink(missing_ok=True)
            run, code = self._bench.start(kind, **{VARIABLE: INTERRUPTED_AT[kind]})
            assert (code, self._bench.resume(run, **{TRACE: str(trace)})) == (-signal.SIGKILL, 0)
            self._resumed[kind] = list(reached(trace))
        return self._resumed[kind]


@pytest.fixture(params=range(PARTS))
def part(request: pytest.FixtureRequest) -> slice:
    return slice(request.param, None, PARTS)


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Undisturbed:
    return Undisturbed(bench)


def to_the_end(bench: Bench, kind: str, run: Path) -> list[str]:
    """Resume `run`, or start it where it is not there yet; return what goes wrong."""
    code = bench.resume(run) if (run / "run.json").exists() else bench.repeat(kind, run)[1]
    return [] if code == 0 else [f"the orchestrator ends with {code}: {bench.output.read_text()[-1000:]}"]


@pytest.mark.fault(4)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_orchestrator(bench: Bench, undisturbed: Undisturbed, kind: str, part: slice) -> None:
    found = {}
    for point, count in undisturbed.moments(kind, "orchestrator")[part]:
        run, code = bench.start(kind, **{VARIABLE: f"{point}@{count}"})
        if code == -signal.SIGKILL:
            wrong = to_the_end(bench, kind, run) or problems(bench, run, undisturbed.facts[kind])
        else:
            # Streamed rounds are committed by a thread, so how often some places are come by varies.
            wrong = [f"not killed: {code}"] if count == 1 or code else []
        if wrong:
            found[f"{point}@{count}"] = wrong
    assert found == {}


@pytest.mark.fault(4)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_while_it_is_resumed(bench: Bench, undisturbed: Undisturbed, kind: str, part: slice) -> None:
    found = {}
    for point in undisturbed.resumed(kind)[part]:
        run, _ = bench.start(kind, **{VARIABLE: INTERRUPTED_AT[kind]})
        code = bench.resume(run, **{VARIABLE: point})
        wrong = [f"not killed: {code}"] if code != -signal.SIGKILL else to_the_end(bench, kind, run)
        wrong = wrong or problems(bench, run, undisturbed.facts[kind])
        if wrong:
            found[point] = wrong
    assert found == {}


@pytest.mark.parametrize(
    "program", [pytest.param("searcher", marks=pytest.mark.fault(1)), pytest.param("learner", marks=pytest.mark.fault(3))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_daemon(bench: Bench, undisturbed: Undisturbed, kind: str, program: str, part: slice) -> None:
    """The process that computes and writes; the orchestrator goes on, or ends and is resumed."""
    found = {}
    for point, count in undisturbed.moments(kind, program)[part]:
        arm = bench.arm(program, f"{point}@{count}")
        run, code = bench.start(kind)
        wrong = ["not killed"] if arm.exists() else []
        bench.calm()
        wrong += (to_the_end(bench, kind, run) if code else []) or problems(bench, run, undisturbed.facts[kind])
        if wrong:
            found[f"{point}@{count}"] = wrong
    assert found == {}


def test_every_failpoint_is_killed_at(undisturbed: Undisturbed) -> None:
    """By the tests above, which fail where they do not kill the first time; those of tracking are in `test_tracking_resume`."""
    killed_at = {point for found in undisturbed.reached.values() for point in found}
    killed_at |= {point for kind in KINDS for point in undisturbed.resumed(kind)}
    assert sorted(set(POINTS) - killed_at - TRACKED) == []
