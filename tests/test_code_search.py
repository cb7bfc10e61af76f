"""The policy code_search: proposals that follow fitness, codes as vectors, rounds that a crash cannot bring out of order."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.code_search import ROWS, curve, settings_of
from orchestrator.analysing.subjects import _warm_round
from orchestrator.journal import Journal
from orchestrator.policies import RoundPlan, make_policy, reason_of
from orchestrator.policies.genomes import Genome
from orchestrator.policies.proposals import Method, Space, distribution_mean, proposed
from orchestrator.preflight import planned
from orchestrator.report import COST_METRICS, EVALUATION_METRICS, FITNESS_METRICS, ROUND_METRICS, RoundReport
from orchestrator.tables import rounds_table
from repsearch.config import RunConfig, load_config, parse_config
from repsearch.errors import ConfigError
from store import open_store
from tests.orchestrator_runs import complete, learned, orchestrator

STRATEGY = {"name": "class_code", "blur_passes": [1, 0, 0], "frequency": [2.0, 1.0, 0.0]}
POLICY = {"name": "code_search", "population": 4, "epochs": 2, "warm_epochs": 3, "latent": 2, "classes": 3, "fitness": "accuracy"}


def config_of(*, count: int = 14, learn: dict[str, Any] | None = None, strategy: dict[str, Any] | None = None, **fields: Any) -> RunConfig:
    settings = ("max_seconds", "plateau", "schedule", "examples_per_round", "evaluate_every")
    rounds = {name: fields.pop(name) for name in settings if name in fields}
    return parse_config(
        {
            "dataset": {"name": "digits", "fitness": fields.pop("dataset_fitness", 50)},
            "search": {"layers": [0, 1, "logits"], "strategy": strategy or STRATEGY},
            "learn": {"epochs": 9, **(learn or {})},
            "rounds": {"policy": {**POLICY, **fields}, "count": count, **rounds},
        }
    )


def report(plan: RoundPlan, fitness: float) -> RoundReport:
    names = (*(COST_METRICS if plan.fitness_alone else ROUND_METRICS), *FITNESS_METRICS)
    metrics = dict.fromkeys(names, 0.0)
    metrics |= {"fitness/accuracy": fitness, "fitness/cross_entropy": 1 - fitness, "seconds/round": 10.0}
    return RoundReport(round=plan.round, policy="p", strategy="s", objective="o", metrics=metrics)


def fitness_of(plan: RoundPlan) -> float:
    """A made-up result: better the nearer the code's numbers are to 1."""
    latent = plan.changes.get("strategy", {}).get("latent") or [[[[5.0]]]]
    values = np.concatenate([np.ravel(block) for block in latent if block])
    return float(1 / (1 + np.mean((values - 1) ** 2)))


def run(config: RunConfig) -> tuple[list[RoundPlan], list[RoundReport]]:
    policy = make_policy(config)
    policy.check(config)
    plans, reports = list[RoundPlan](), list[RoundReport]()
    while (plan := policy.next(reports, config)) is not None:
        plans.append(plan)
        reports.append(report(plan, fitness_of(plan)))
    return plans, reports


def space(dimensions: int = 20, seed: int = 1) -> Space:
    return Space(groups=np.arange(dimensions), population=8, step=1.0, seed=seed)


def generations(method: Method, where: Space, count: int) -> list[np.ndarray]:
    """Fitness of `count` generations on a sphere around 1."""
    fitness: list[np.ndarray] = []
    for _ in range(count):
        fitness.append(-((proposed(method, where, fitness) - 1) ** 2).mean(axis=1))
    return fitness


@pytest.mark.parametrize("method", ["evolution_strategy", "genetic"])
def test_proposals_follow_fitness(method: Method) -> None:
    found, control = (np.mean([generations(name, space(seed=seed), 40)[-1].max() for seed in range(3)]) for name in (method, "random"))
    assert found > -0.35 > -0.9 > control


def test_the_strategy_adapts_a_variance_per_coordinate() -> None:
    where, scale = space(8), np.array([1.0] * 4 + [100.0] * 4)
    fitness: list[np.ndarray] = []
    for _ in range(150):
        fitness.append(-(scale * (proposed("evolution_strategy", where, fitness) - 1) ** 2).mean(axis=1))
    mean = distribution_mean(where, fitness)
    assert np.abs(mean - 1).max() < 0.05


@pytest.mark.parametrize("method", ["evolution_strategy", "genetic", "random"])
def test_proposals_are_a_function_of_seed_and_fitness(method: Method) -> None:
    fitness = generations(method, space(), 3)
    assert np.array_equal(proposed(method, space(), fitness), proposed(method, space(), fitness))
    assert not np.array_equal(proposed(method, space(), fitness), proposed(method, space(seed=2), fitness))
    other = [*fitness[:2], fitness[2][::-1]]
    assert np.array_equal(proposed(method, space(), fitness), proposed(method, space(), other)) is (method == "random")


def genome(*genes: Any, per_block: bool = True, **strategy: Any) -> Genome:
    table = {**parse_config({"search": {"strategy": STRATEGY}}).search.strategy, **strategy}
    return Genome(genes=genes, strategy=table, blocks=[0, 1], layers=3, classes=3, latent=2, per_block=per_block)


def test_a_vector_of_zeros_is_the_configured_code() -> None:
    every = genome("latent", "frequency", "strength", "mix", mix=0.5)
    fields = every.fields(np.zeros(sum(every.sizes().values())))
    zeros = [[[0.0, 0.0]]] * 3
    assert fields == {"latent": [zeros, zeros, []], "frequency": [2.0, 1.0, 0.0], "strength": [1.0, 1.0, 1.0], "mix": 0.5}


def test_coordinates_are_what_they_stand_for() -> None:
    own = genome("latent").fields(np.arange(12.0))["latent"]
    assert own == [[[[0, 1]], [[2, 3]], [[4, 5]]], [[[6, 7]], [[8, 9]], [[10, 11]]], []]
    shared = genome("latent", per_block=False).fields(np.arange(6.0))["latent"]
    assert shared == [own[0], own[0], []]
    assert genome("frequency").fields(np.array([1.0, -1.0]))["frequency"] == [4.0, 0.5, 0.0]
    assert genome("mix", mix=0.9).fields(np.array([3.0]))["mix"] == 1.0
    several = genome("latent", "codes", codes_per_class=4)
    few, many = (several.fields(np.array([0.0] * 48 + [value])) for value in (-9.0, 9.0))
    assert (few["codes_per_class"], len(few["latent"][0][0]), many["codes_per_class"], len(many["latent"][1][2])) == (1, 1, 4, 4)


def test_coordinates_of_a_class_are_inherited_together() -> None:
    groups = genome("frequency", "latent").groups()
    assert groups.tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2, 3, 4]


def test_a_run_is_warm_start_generations_and_a_last_round_with_the_best_code() -> None:
    config = config_of()
    plans, reports = run(config)
    assert len(plans) == config.rounds.count == 1 + 3 * 4 + 1
    warm, candidates, last = plans[0], plans[1:-1], plans[-1]
    assert (warm.epochs, warm.searched_round, warm.warm_round, warm.changes) == (3, None, None, {})
    assert {(plan.epochs, plan.searched_round, plan.warm_round, plan.drawn_as, plan.search) for plan in candidates} == {(2, 0, 0, 1, True)}
    assert len({json.dumps(plan.changes) for plan in candidates}) == 12
    best = max(candidates, key=fitness_of)
    assert (last.epochs, last.warm_round, last.drawn_as, last.changes) == (9, None, None, best.changes)
    assert reason_of(make_policy(config), reports, config).startswith(
        f"all 3 generations of 4 codes are done; the best is that of round {best.round}"
    )
    assert run(config_of(learn={"start": "warm"}))[0][-1].warm_round == 0


def test_without_a_warm_start_candidates_learn_from_initial_parameters() -> None:
    plans, _ = run(config_of(count=13, warm_epochs=0))
    assert {(plan.searched_round, plan.warm_round) for plan in plans} == {(None, None)}
    assert plans[0].changes


def test_the_codes_of_a_generation_do_not_depend_on_one_another() -> None:
    config = config_of()
    plans, reports = run(config)
    policy = make_policy(config)
    # Round 7 is the third of the second generation: only the first generation decides on it.
    bad = [*reports[:5], *(report(plan, 0.0) for plan in plans[5:7])]
    worse = [reports[0], *(report(plan, float(plan.round)) for plan in plans[1:5]), *reports[5:7]]
    again, other = (policy.next(history, config) for history in (bad, worse))
    assert again == plans[7]
    assert other is not None and other.changes != plans[7].changes


def test_the_random_control_draws_a_new_code_for_every_candidate() -> None:
    plans, _ = run(config_of(method="random", genes=["frequency"]))
    tables = [plan.changes["strategy"] for plan in plans[1:-1]]
    assert len({table["code_seed"] for table in tables}) == 12 and {table["latent"] for table in tables} == {None}


def test_the_mean_of_the_distribution_can_be_the_result() -> None:
    config = config_of(result="mean", count=82)
    plans, _ = run(config)
    assert all(plan.changes != plans[-1].changes for plan in plans[:-1])
    assert fitness_of(plans[-1]) > np.mean([fitness_of(plan) for plan in plans[1:5]])


def test_cross_entropy_is_minimised() -> None:
    assert run(config_of(fitness="cross_entropy"))[0] == run(config_of(fitness="accuracy"))[0]


def test_an_analysis_knows_that_the_last_round_went_on_from_the_warm_start(tmp_path: Path) -> None:
    config = config_of(learn={"start": "warm"})
    with Journal(tmp_path) as journal:
        for plan in run(config)[0]:
            journal.append("round_started", round=plan.round, plan=plan.to_dict())
    found: Any = SimpleNamespace(folder=tmp_path, config=config)
    assert [_warm_round(found, number) for number in (0, 1, 12, 13)] == [None, 0, 0, 0]


def test_fitness_is_a_column_of_the_table_of_rounds() -> None:
    _, reports = run(config_of())
    table = rounds_table(reports, [])
    assert [column.header for column in table.columns][:3] == ["round", "test accuracy", "fitness"]
    assert list(table.columns[2].cells)[1] == f"{reports[1].metrics['fitness/accuracy']:.2%}"


def test_a_budget_that_cuts_the_search_leaves_the_last_round() -> None:
    config = config_of(max_seconds=65.0)
    plans, reports = run(config)
    assert len(plans) == 8
    assert plans[-1].epochs == 9 and plans[-1].changes == max(plans[1:-1], key=fitness_of).changes
    assert reason_of(make_policy(config), reports, config) == "budget: rounds.max_seconds = 65 is spent by 70.0 seconds"


def test_validation_and_test_are_for_the_last_round() -> None:
    plans, reports = run(config_of())
    assert [plan.fitness_alone for plan in plans] == [True] * 13 + [False]
    assert [report.evaluated for report in reports] == [False] * 13 + [True]
    cells = list(rounds_table(reports, []).columns[1].cells)
    assert cells == ["-"] * 13 + ["0.00%"]


def test_a_plateau_is_of_fitness_where_nothing_else_is_measured() -> None:
    config = config_of(plateau=3)
    plans, reports = run(config)
    fitness = [report.metrics["fitness/accuracy"] for report in reports]
    ends = next(end for end in range(4, 14) if max(fitness[end - 3 : end]) <= max(fitness[: end - 3]))
    assert len(plans) == ends + 1 and plans[-1].epochs == 9
    best = max(fitness[:ends])
    text = f"plateau: rounds.plateau = 3 rounds without a fitness accuracy above the {best:.2%} of round {fitness.index(best)}"
    assert reason_of(make_policy(config), reports, config) == text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset_fitness": 0}, "dataset.fitness: none are set apart"),
        ({"count": 15}, "rounds.count: 15 rounds less 2 .* not whole generations of 4 codes; set it to 14"),
        ({"count": 2}, "set it to 6"),
        ({"strategy": {"name": "none"}}, "search.strategy: none, but code_search searches class codes"),
        ({"strategy": {"name": "class_code", "blur_passes": [1, 0, 0]}}, "search.strategy.frequency: code_search changes it by factors"),
        ({"learn": {"start": "continue"}}, 'learn.start: .*; set it to "fresh" or "warm"'),
        ({"schedule": [{"from_round": 1, "epochs": 1}]}, "rounds.schedule: code_search says itself"),
        ({"examples_per_round": 50}, "rounds.examples_per_round: code_search says itself"),
        ({"evaluate_every": 2}, "rounds.evaluate_every: code_search needs every round measured"),
        ({"method": "random", "result": "mean"}, 'set result = "best"'),
        ({"genes": ["mix", "mix"]}, "gene 'mix' is given twice"),
        ({"genes": ["maps"]}, "genes"),
    ],
)
def test_a_search_of_codes_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config = config_of(**fields)
        make_policy(config).check(config)


def test_the_comparison_costs_every_row_the_same() -> None:
    overrides = ["dataset.root=nowhere"]
    path = Path(__file__).parent.parent / "configs/mnist-code-search.toml"
    config = load_config(path, overrides)
    examples = {}
    for name in ROWS:
        row = load_config(path, [*overrides, *settings_of(name, config)])
        plans = planned(make_policy(row), row, row.dataset["train"])
        examples[name] = sum(plan.epochs for plan in plans) * row.dataset["train"]
    cost = examples["search"]
    assert cost == (2 + 32 * 4 + 12) * 2000
    assert examples["genetic"] == examples["random"] == examples["one code"] == cost
    assert cost <= examples["more images"] < cost + 3000
    assert examples["plain"] == 12 * 2000


def test_a_curve_has_every_generation() -> None:
    config = config_of()
    _, reports = run(config)
    points = curve(reports, config)
    assert [point["generation"] for point in points] == [0, 1, 2]
    assert points[1]["best"] == max(report.metrics["fitness/accuracy"] for report in reports[5:9])
    assert points[2]["best_so_far"] == max(report.metrics["fitness/accuracy"] for report in reports[1:13])


CONFIG = """
[run]
root = "{root}"
[dataset]
name = "digits"
train = 100
validation = 50
test = 50
fitness = 60
[network]
name = "convnet"
width = 8
blocks = 2
convolutions = 2
[search]
layers = [0, 1, "logits"]
calibration_examples = 50
[search.strategy]
name = "class_code"
frequency = [1.5, 1.0, 0.0]
[learn]
epochs = 2
batch_size = 25
[rounds]
policy = {{name = "code_search", population = 2, epochs = 1, warm_epochs = 1, fitness = "accuracy"}}
count = 6
[searcher]
shard_examples = 64
[tracking]
enabled = false
"""


@pytest.mark.slow  # Two runs on daemons, and a resume: half a minute.
def test_codes_are_searched_by_daemons_and_a_killed_search_goes_on(tmp_path: Path) -> None:
    (tmp_path / "codes.toml").write_text(CONFIG.format(root=tmp_path / "runs"))
    printed = complete("run", "codes.toml", "--name", "whole", folder=tmp_path)
    assert "ended: all 2 generations of 2 codes are done; the best is that of round" in printed
    store = open_store(tmp_path / "runs/whole")
    reports = [store.read_document(f"rounds/{number:05d}/report.json")["report"] for number in range(6)]
    assert all(0 <= report["metrics"]["fitness/accuracy"] <= 1 for report in reports)
    assert [sorted(name for name in report["metrics"] if name in EVALUATION_METRICS) for report in reports[:5]] == [[]] * 5
    assert set(EVALUATION_METRICS) <= set(reports[5]["metrics"])
    assert len({report["searched"]["digest"] for report in reports[1:]}) == 1
    assert reports[0]["changes"] == {} and all(report["changes"]["strategy"]["latent"] for report in reports[1:])
    best = max(reports[1:5], key=lambda report: report["metrics"]["fitness/accuracy"])
    assert reports[5]["changes"] == best["changes"]
    # Every code has a digest of its own, but the best one's second round.
    digests = [store.read_document(f"rounds/{number:05d}/round.json")["search_digest"] for number in range(6)]
    assert len(set(digests)) == 5 and digests[5] in digests[1:5]
    with orchestrator("run", "codes.toml", "--name", "killed", folder=tmp_path) as process:
        # In the second generation, whose codes follow from the first one's reports.
        process.await_file(tmp_path / "runs/killed", "rounds/00004/round.json")
        process.send(signal.SIGKILL)
        process.wait()
    complete("resume", "runs/killed", folder=tmp_path)
    assert learned(tmp_path / "runs/killed", rounds=6) == learned(tmp_path / "runs/whole", rounds=6)
