"""What every round policy keeps: a pure function of the reports so far, rounds numbered from 0, an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from orchestrator.policies import RoundPlan, RoundPolicy, composing, make_policy, reason_of
from orchestrator.report import COST_METRICS, FITNESS_METRICS, ROUND_METRICS, RoundReport
from repsearch.config import RunConfig, loading, parse_config, with_search
from repsearch.errors import ConfigError
from repsearch.families import POLICIES, Family

ROUNDS = {"one_shot": 1, "code_search": 10}
"""Rounds for the contract of a member, where not 3."""
STARTS = {"streaming": "continue"}
"""The only `learn.start` of a member that has but one."""
SECTIONS: dict[str, dict[str, Any]] = {
    "code_search": {"dataset": {"name": "digits", "fitness": 9}, "search": {"strategy": {"name": "class_code", "frequency": [1.0] * 4}}}
}
"""What the contract of a member needs of the rest of the configuration."""


def config_of(name: str, *, start: str = "fresh", rounds: int | None = None) -> RunConfig:
    start = STARTS.get(name, start)
    table = {"rounds": {"policy": name, "count": rounds or ROUNDS.get(name, 3)}, "learn": {"start": start, "epochs": 7}}
    return parse_config({**SECTIONS.get(name, {}), **table})


def report(number: int, *, validation: float = 0.0, evaluations: float = 0.0, seconds: float = 0.0) -> RoundReport:
    metrics = dict.fromkeys((*ROUND_METRICS, *FITNESS_METRICS), 0.0)
    metrics |= {"validation/accuracy": validation, "search/evaluations_per_example": evaluations, "seconds/round": seconds}
    return RoundReport(round=number, policy="p", strategy="s", objective="o", metrics=metrics)


def plans(config: RunConfig) -> list[RoundPlan]:
    policy: RoundPolicy = POLICIES.build(config.rounds.policy)
    policy.check(config)
    found: list[RoundPlan] = []
    while (plan := policy.next([report(number) for number in range(len(found))], config)) is not None:
        found.append(plan)
        assert len(found) <= 100, "the policy has no end"
    return found


@pytest.mark.parametrize("start", ["fresh", "warm"])
@pytest.mark.parametrize("name", POLICIES.members)
def test_rounds_are_numbered_and_refer_to_earlier_ones(name: str, start: str) -> None:
    config = config_of(name, start=start)
    found = plans(config)
    assert [plan.round for plan in found] == list(range(config.rounds.count))
    for plan in found:
        assert plan.search == POLICIES.member(name).searches and plan.epochs > 0
        assert all(earlier is None or 0 <= earlier < plan.round for earlier in (plan.searched_round, plan.warm_round))
    assert found[-1].epochs == 7
    # From one learned network to the next where learning goes on; every network by itself where it does not.
    assert (found[-1].warm_round is not None) is (config.learn.start != "fresh" and len(found) > 1)


@pytest.mark.parametrize("name", ["closed_loop", "learn_only"])
def test_rounds_go_on_from_the_one_before_or_start_afresh(name: str) -> None:
    assert [plan.warm_round for plan in plans(config_of(name, start="warm"))] == [None, 0, 1]
    assert [plan.warm_round for plan in plans(config_of(name, start="fresh"))] == [None] * 3


@pytest.mark.parametrize("name", POLICIES.members)
def test_a_replayed_history_gives_the_same_plans(name: str) -> None:
    assert plans(config_of(name)) == plans(config_of(name))


def test_closed_loop_searches_the_network_of_the_round_before() -> None:
    assert [plan.searched_round for plan in plans(config_of("closed_loop"))] == [None, 0, 1]


def test_one_shot_searches_the_untrained_network_once() -> None:
    assert [(plan.search, plan.searched_round) for plan in plans(config_of("one_shot"))] == [(True, None)]
    with pytest.raises(ConfigError, match=r"rounds\.count: 3 rounds, but the policy one_shot searches once; set rounds\.count = 1"):
        plans(config_of("one_shot", rounds=3))


def test_learn_only_searches_nothing() -> None:
    assert [(plan.search, plan.searched_round) for plan in plans(config_of("learn_only"))] == [(False, None)] * 3


def rounds_of(history: list[RoundReport], **rounds: Any) -> tuple[list[RoundPlan], str]:
    """Plans of a run whose reports come out as `history`, and why it ended ("" if it goes on)."""
    config = parse_config({"rounds": rounds, "learn": {"epochs": 7}})
    policy = make_policy(config)
    policy.check(config)
    found: list[RoundPlan] = []
    while (plan := policy.next(history[: len(found)], config)) is not None:
        found.append(plan)
        if len(found) > len(history):
            break
    return found, reason_of(policy, history[: len(found)], config)


def improving(count: int) -> list[RoundReport]:
    return [report(number, validation=number / 100, evaluations=100, seconds=10) for number in range(count)]


def test_without_fields_of_their_own_rounds_have_no_policy_around_theirs() -> None:
    config = parse_config({})
    assert type(make_policy(config)) is POLICIES.member("closed_loop")
    assert all(plan.config(config) is config for plan in plans(config))


def test_a_schedule_changes_settings_from_a_round_on() -> None:
    schedule = [
        {"from_round": 1, "epochs": 3},
        {"from_round": 2, "search": {"strategy": {"population": 48, "parents": 8, "explorers": 16, "refiners": 24}, "input_noise": 0.2}},
        {"from_round": 4, "search": {"strategy": "none"}},
    ]
    found, reason = rounds_of(improving(5), count=5, schedule=schedule)
    assert reason == "all 5 rounds are done"
    config = parse_config({"learn": {"epochs": 7}})
    settings = [plan.config(config).search for plan in found]
    assert [plan.epochs for plan in found] == [7, 3, 7, 7, 7]
    assert [search.strategy.get("population") for search in settings] == [24, 24, 48, 48, None]
    assert [search.input_noise for search in settings] == [0.1, 0.1, 0.2, 0.2, 0.1]
    assert settings[2].strategy["boost"] == config.search.strategy["boost"]


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ({"schedule": [{"from_round": 3}]}, r"rounds\.schedule\.0\.from_round: 3, but the last round is 2"),
        ({"schedule": [{"from_round": 1}, {"from_round": 1}]}, "round 1 follows round 1; list rounds in increasing order"),
        ({"schedule": [{"from_round": 1, "epohcs": 3}]}, r"unknown key 'epohcs'; did you mean 'epochs'\?"),
        ({"schedule": [{"from_round": 1, "epochs": 0}]}, r"rounds\.schedule\.0\.epochs: should be greater than or equal to 1"),
        (
            {"policy": "learn_only", "schedule": [{"from_round": 1, "search": {"input_noise": 0.2}}]},
            "schedule.0.search: the policy learn_only searches nothing",
        ),
        ({"policy": "learn_only", "plateau": 2, "at_plateau": "widen"}, "the policy learn_only has no search to widen"),
        ({"plateau": 0}, r"rounds\.plateau: should be greater than or equal to 1"),
        ({"max_seconds": 0.0}, r"rounds\.max_seconds: should be greater than 0"),
        ({"widen_by": 1.0}, r"rounds\.widen_by: should be greater than 1"),
    ],
)
def test_rounds_that_cannot_be_are_refused(rounds: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rounds_of([], **{"count": 3, **rounds})


def test_a_strategy_without_numbers_of_candidates_cannot_be_widened() -> None:
    config = parse_config({"search": {"strategy": "class_code"}, "rounds": {"plateau": 1, "at_plateau": "widen"}})
    with pytest.raises(ConfigError, match="the strategy class_code has no number of candidates to widen"):
        make_policy(config).check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": {"name": "evolution", "population": 5}}, r"search\.strategy: .*population is 5; make the parts add up"),
        ({"strateyg": {}}, r"search\.strateyg: not among what a round may change; did you mean 'strategy'\?"),
        ({"network": {"width": 4}}, r"search\.network: not among what a round may change"),
        ({"input_noise": -1.0}, r"search\.input_noise: should be greater than or equal to 0"),
    ],
)
def test_changes_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_search(parse_config({}), changes)


def test_a_plateau_ends_the_run_and_says_where() -> None:
    history = [report(number, validation=value) for number, value in enumerate([0.5, 0.7, 0.6, 0.7, 0.9])]
    found, reason = rounds_of(history, count=9, plateau=2)
    assert len(found) == 4
    assert reason == "plateau: rounds.plateau = 2 rounds without a validation accuracy above the 70.00% of round 1"


def test_a_plateau_widens_the_search_before_it_ends_the_run() -> None:
    values = [0.5, 0.5, 0.6, 0.6, 0.6, 0.6]
    history = [report(number, validation=value) for number, value in enumerate(values)]
    rounds = {"count": 9, "plateau": 1, "at_plateau": "widen", "widen_by": 1.5, "widen_times": 2}
    found, reason = rounds_of(history, **rounds)
    config = parse_config({})
    sizes = [plan.config(config).search.strategy for plan in found]
    assert [size["population"] for size in sizes] == [24, 24, 36, 36, 54]
    assert [size["parents"] for size in sizes] == [4, 4, 6, 6, 9]
    assert reason.startswith("plateau: rounds.plateau = 1")


def test_a_wider_search_is_made_of_what_the_schedule_left() -> None:
    history = [report(number) for number in range(3)]
    schedule = [{"from_round": 0, "search": {"strategy": {"name": "evolution_strategy", "pairs": 5}}}]
    found, _ = rounds_of(history, count=3, plateau=1, at_plateau="widen", schedule=schedule)
    assert [plan.changes["strategy"]["pairs"] for plan in found] == [5, 5, 10]
    # A strategy that the schedule does not name keeps the fields that it gives.
    schedule = [{"from_round": 0, "search": {"strategy": {"generations": [3, 2, 1, 1]}}}]
    found, _ = rounds_of(history, count=3, plateau=1, at_plateau="widen", schedule=schedule)
    last = found[2].config(parse_config({})).search.strategy
    assert (last["generations"], last["population"]) == ([3, 2, 1, 1], 48)


@pytest.mark.parametrize(
    ("budget", "rounds", "reason"),
    [
        ({"max_evaluations": 250}, 3, "budget: rounds.max_evaluations = 250 is spent by 300 candidate evaluations per example"),
        ({"max_seconds": 20.0}, 2, "budget: rounds.max_seconds = 20 is spent by 20.0 seconds"),
        ({"max_seconds": 40.0, "max_evaluations": 150}, 2, "budget: rounds.max_evaluations = 150 is spent by 200 candidate"),
        ({"max_evaluations": 1, "plateau": 1}, 1, "budget: rounds.max_evaluations"),
        ({"max_evaluations": 10000}, 5, "all 5 rounds are done"),
    ],
)
def test_a_budget_ends_the_run_after_the_round_that_spends_it(budget: dict[str, Any], rounds: int, reason: str) -> None:
    found, why = rounds_of(improving(5), count=5, **budget)
    assert len(found) == rounds
    assert why.startswith(reason)


@dataclass(frozen=True, kw_only=True)
class Closing:
    """Rounds without search, and one of a hundred epochs at the end."""

    searches: ClassVar[bool] = False

    def check(self, config: RunConfig) -> None: ...

    def next(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        if len(history) >= config.rounds.count or (history and history[-1].ended == "closed"):
            return None
        return RoundPlan(round=len(history), search=False, searched_round=None, warm_round=None, epochs=1)

    def closing(self, history: Sequence[RoundReport], config: RunConfig) -> RoundPlan | None:
        return RoundPlan(round=len(history), search=False, searched_round=None, warm_round=None, epochs=100)


@pytest.mark.parametrize("cut", [{"max_seconds": 15.0}, {"plateau": 1}, {"max_seconds": 15.0, "plateau": 1}])
def test_a_run_that_is_cut_still_has_its_closing_round(cut: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing, "POLICIES", Family("policies", {"closing": f"{__name__}:Closing"}))
    monkeypatch.setattr(loading, "PLUGINS", tuple((path, family) for path, family in loading.PLUGINS if path != "rounds.policy"))
    history = [report(number, validation=0.5, seconds=10) for number in range(6)]
    found, reason = rounds_of(history, policy={"name": "closing"}, count=9, **cut)
    assert [plan.epochs for plan in found] == [1, 1, 100]
    assert reason.startswith(("budget", "plateau"))


OUTSIDE = '''
from dataclasses import dataclass, replace
from typing import ClassVar
from orchestrator.policies import RoundPlan

@dataclass(frozen=True, kw_only=True)
class Doubling:
    """Each round learns twice as long as the one before.

    first: epochs of round 0.
    """
    searches: ClassVar[bool] = True
    first: int = 1

    def check(self, config):
        pass

    def next(self, history, config):
        number = len(history)
        if number == config.rounds.count:
            return None
        changes = {"input_noise": 0.5} if number else {}
        return RoundPlan(round=number, search=True, searched_round=None, warm_round=None, epochs=self.first * 2**number, changes=changes)

    def reason(self, history, config):
        return "long enough"
'''


def test_a_policy_of_another_package_plans_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doubling_policy.py").write_text(OUTSIDE)
    info = tmp_path / "doubling_policy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doubling-policy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[repsearch.policies]\ndoubling = doubling_policy:Doubling\n")
    monkeypatch.syspath_prepend(tmp_path)
    found, reason = rounds_of(improving(4), policy={"name": "doubling", "first": 3}, count=4)
    assert ([plan.epochs for plan in found], reason) == ([3, 6, 12, 24], "long enough")
    # What goes around policies goes around this one too.
    found, reason = rounds_of(improving(4), policy="doubling", count=4, max_evaluations=150, schedule=[{"from_round": 1, "epochs": 5}])
    assert [plan.epochs for plan in found] == [1, 5]
    assert reason.startswith("budget")
    config = parse_config({"rounds": {"policy": "doubling"}})
    assert [plan.config(config).search.input_noise for plan in found] == [0.1, 0.5]
    with pytest.raises(ConfigError, match=r"rounds\.policy\.frist: unknown key 'frist'; did you mean 'first'"):
        parse_config({"rounds": {"policy": {"name": "doubling", "frist": 1}}})


def test_windows_count_by_their_share_and_a_run_ends_where_it_is_measured() -> None:
    def window(number: int) -> RoundReport:
        whole = report(number, validation=0.5, evaluations=100, seconds=10)
        metrics = whole.metrics if number % 2 else {name: whole.metrics[name] for name in COST_METRICS}
        return replace(whole, metrics=metrics, share=0.5)

    history = [window(number) for number in range(9)]
    found, reason = rounds_of(history, count=9, max_evaluations=120)
    assert (len(found), reason) == (4, "budget: rounds.max_evaluations = 120 is spent by 200 candidate evaluations per example")
    found, reason = rounds_of(history, count=9, plateau=1)
    assert (len(found), "of round 1" in reason) == (4, True)
