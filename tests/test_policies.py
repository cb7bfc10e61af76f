"""What every round policy keeps: a pure function of the reports so far, rounds numbered from 0, an end."""

from __future__ import annotations

import pytest

from orchestrator.policies.base import RoundPlan, RoundPolicy
from orchestrator.report import ROUND_METRICS, RoundReport
from repsearch.config import RunConfig, parse_config
from repsearch.errors import ConfigError
from repsearch.families import POLICIES

ROUNDS = {"one_shot": 1}
"""Rounds for the contract of a member, where not 3."""


def config_of(name: str, *, start: str = "fresh", rounds: int | None = None) -> RunConfig:
    return parse_config({"rounds": {"policy": name, "count": rounds or ROUNDS.get(name, 3)}, "learn": {"start": start, "epochs": 7}})


def report(number: int) -> RoundReport:
    return RoundReport(round=number, policy="p", strategy="s", objective="o", metrics=dict.fromkeys(ROUND_METRICS, 0.0))


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
        assert plan.search == POLICIES.member(name).searches and plan.epochs == 7
        assert all(earlier is None or 0 <= earlier < plan.round for earlier in (plan.searched_round, plan.warm_round))
        assert plan.warm_round == (plan.round - 1 if start == "warm" and plan.round else None)


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
