"""Shards whose size follows from the speed: short at every scale, each example once, the same bits as of any other size."""

from __future__ import annotations

import heapq
from pathlib import Path

import pytest

from orchestrator.attempts import Task
from orchestrator.journal import read_journal
from orchestrator.scheduling import Hooks, run_tasks
from orchestrator.searching import load_search
from orchestrator.sharding import FIRST, MOST, AutoShards, without_overlap
from orchestrator.verify import verify
from repsearch.config import parse_config
from repsearch.errors import ConfigError, StoppedError
from repsearch.rpc.v1 import jobs_pb2
from store import open_store
from tests.background_runs import daemons, resumed, run_on
from tests.orchestrator_runs import learned
from tests.test_orchestrator_scheduling import FakeDaemon, succeed

LOST_S = 60.0


def searched(auto: AutoShards, paces: dict[str, float], *, overhead_s: float = 0.05) -> list[tuple[int, int, float]]:
    """Give shards to searchers of these paces until there are none; return first, count and seconds of each."""
    done, free = list[tuple[int, int, float]](), [(0.0, name) for name in paces]
    while free:
        now, name = heapq.heappop(free)
        if (span := auto.next(name)) is None:
            continue
        seconds = span[1] * paces[name] + overhead_s
        auto.took(name, span[1], seconds)
        done.append((*span, seconds))
        heapq.heappush(free, (now + seconds, name))
    return done


def check_each_once(done: list[tuple[int, int, float]], examples: int) -> None:
    end = 0
    for first, count, _ in sorted(done):
        assert first == end
        end = first + count
    assert end == examples


@pytest.mark.parametrize("pace", [1e-5, 1e-3, 0.02, 0.3, 3.0])
@pytest.mark.parametrize("searchers", [1, 3])
def test_a_kill_loses_little_at_any_scale(pace: float, searchers: int) -> None:
    examples = int(min(200_000, max(300, 2000 / pace)))
    auto = AutoShards(0, examples, [], pace=None, searchers=searchers)
    # Searchers are not equally fast.
    done = searched(auto, {str(number): pace * (1 + 3 * number) for number in range(searchers)})
    check_each_once(done, examples)
    # Nothing is known of the first shard: it is as small as is worth while.
    assert all(seconds <= LOST_S or count <= FIRST for _, count, seconds in done)
    # And few: most take a good part of what may be lost.
    assert len(done) <= 20 * searchers + 2 * examples / MOST + sum(seconds for _, _, seconds in done) / 10


def test_a_round_that_is_ten_times_slower_than_the_one_before_begins_carefully() -> None:
    done = searched(AutoShards(0, 5000, [], pace=0.01, searchers=1), {"a": 0.1})
    check_each_once(done, 5000)
    assert max(seconds for _, _, seconds in done) <= LOST_S


def test_what_is_there_is_not_searched_again() -> None:
    done = searched(AutoShards(100, 400, [(150, 50), (390, 10)], pace=None, searchers=2), {"a": 0.001, "b": 0.001})
    covered = sorted([(first, count, 0.0) for first, count, _ in done] + [(150, 50, 0.0), (390, 10, 0.0)])
    check_each_once([(first - 100, count, 0.0) for first, count, _ in covered], 300)
    assert AutoShards(0, 10, [(0, 4), (4, 6)], pace=None, searchers=1).next("a") is None


def test_shards_that_overlap_are_not_used_together() -> None:
    assert without_overlap([(0, 16, 0), (8, 16, 1), (16, 8, 2), (24, 8, 3), (16, 4, 4)]) == [0, 2, 3]


def test_tasks_may_come_while_others_run() -> None:
    daemon, left, took = FakeDaemon("a", succeed), [3, 2, 1], list[int]()

    def more(asking: FakeDaemon) -> Task | None:
        assert asking is daemon
        if not left:
            return None
        key = left.pop()
        request = jobs_pb2.StartRequest(request_id=f"{key}/1", term=1)
        return Task(key=key, what=f"shard {key}", weight=2, attempt=1, request=lambda attempt, daemon: request)

    hooks = Hooks(took=lambda task, daemon, seconds: took.append(task.key))
    outcomes = run_tasks([], [daemon], hooks, service="searcher", more=more)
    assert sorted(outcomes) == took == [1, 2, 3]


def test_the_size_is_a_number_or_auto() -> None:
    for size in (1, "auto"):
        assert parse_config({"searcher": {"shard_examples": size}}).searcher.shard_examples == size
    for size in (0, "some"):
        with pytest.raises(ConfigError, match=r"searcher.shard_examples"):
            parse_config({"searcher": {"shard_examples": size}})


@pytest.mark.slow
def test_shards_of_any_size_give_the_same_bits_also_when_the_run_was_stopped(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with daemons(root, 1) as (searchers, learner):
        with run_on(root, searchers, learner, "fixed") as run:
            assert run.end() is None
        auto = 'searcher.shard_examples="auto"'
        with run_on(root, searchers, learner, "auto", auto) as run:
            run.until_file("rounds/00000/search/*/MANIFEST.json")
            run.stop(now=True)
            assert isinstance(run.end(), StoppedError)
        with resumed(run.folder) as again:
            assert again.end() is None
    assert learned(root / "auto") == learned(root / "fixed")
    assert verify(root / "auto") == []
    search = load_search(open_store(root / "auto"), 0)
    check_each_once([(shard["first"], shard["count"], 0.0) for shard in search.shards], 200)
    assert len({shard["count"] for shard in search.shards}) > 1
    assert any(record["kind"] == "shard_size" for record in read_journal(root / "auto"))
