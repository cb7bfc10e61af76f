"""What may change when a run is resumed, and what is refused with what was and would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator import execution
from orchestrator.changing import changed
from orchestrator.runs import Run, open_run
from orchestrator.status import status_of
from repsearch.config import learn_digest, parse_config, search_digest
from repsearch.errors import ConfigError
from tests.background_runs import BackgroundRun, daemons, run_on
from tests.orchestrator_runs import learned


def run_of(**table: Any) -> Run:
    config = parse_config({"rounds": {"count": 2}, **table})
    digests = {"search": search_digest(config), "learn": learn_digest(config)}
    dataset = {"name": "digits", "train": 100}
    return Run(
        folder=Path("runs/night"),
        run_id="r",
        name="night",
        term=1,
        config=config,
        dataset=dataset,
        digests=digests,
        versions={},
        created=0.0,
    )


@pytest.mark.parametrize(
    "override",
    [
        'searcher.addresses=["a:1", "b:2", "c:3"]',
        "searcher.count=4",
        "searcher.shard_examples=auto",
        "learner.address=d:4",
        "rounds.count=5",
        "rounds.max_seconds=3600",
        "rounds.keep={rounds=3}",
        "learn.checkpoint_seconds=60",
        "tracking.enabled=false",
    ],
)
def test_where_and_how_it_is_computed_may_change(override: str) -> None:
    before = run_of()
    after = changed(before, [override], done=1)
    assert after.config != before.config
    assert (search_digest(after.config), learn_digest(after.config)) == (before.digests["search"], before.digests["learn"])


@pytest.mark.parametrize(
    ("override", "diff"),
    [
        ("run.seed=7", "run.seed: 0 -> 7"),
        ("learn.batch_size=13", "learn.batch_size: 125 -> 13"),
        ("search.input_noise=0.5", "search.input_noise: "),
        ("dataset.name=mnist", "dataset.name: 'digits' -> 'mnist'"),
        ("rounds.examples_per_round=50", "rounds.examples_per_round: None -> 50"),
    ],
)
def test_what_results_depend_on_is_refused_with_a_diff(override: str, diff: str) -> None:
    run = run_of(learn={"batch_size": 125})
    with pytest.raises(ConfigError) as error:
        changed(run, [override, "searcher.count=2"], done=0)
    assert diff in str(error.value) and "only these may change" in str(error.value)
    assert "searcher.count:" not in str(error.value)


def test_fewer_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"with more rounds, not with fewer(.|\n)*rounds.count: 2 -> 1"):
        changed(run_of(), ["rounds.count=1"], done=0)


def test_more_rounds_are_refused_where_the_schedule_spans_all() -> None:
    with pytest.raises(ConfigError, match="spans all rounds"):
        changed(run_of(learn={"start": "continue"}), ["rounds.count=4"], done=1)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="adresses"):
        changed(run_of(), ["searcher.adresses=[]"], done=0)


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_rounds_to_the_same_bits(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with daemons(root, 1) as (searchers, learner):
        with run_on(root, searchers, learner, "three", "rounds.count=3") as run:
            assert run.end() is None
        with run_on(root, searchers, learner, "two") as run:
            assert run.end() is None
        document = (run.folder / "run.json").read_bytes()
        with pytest.raises(ConfigError, match=r"run.seed: 0 -> 1"):
            execution.resume(run.folder, None, ["run.seed=1"])  # type: ignore[arg-type]
        assert (run.folder / "run.json").read_bytes() == document
        with BackgroundRun(run.folder, lambda display: execution.resume(run.folder, display, ["rounds.count=3"])) as again:
            assert again.end() is None
    assert open_run(run.folder).config.rounds.count == 3 and open_run(run.folder).term == 2
    assert status_of(run.folder)["state"] == "finished" and status_of(run.folder)["rounds_finished"] == 3
    assert learned(run.folder, 3) == learned(root / "three", 3)
