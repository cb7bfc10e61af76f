"""Tables of evidence: equal conditions for every row, and a table that is cut goes on."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.evidence import running
from orchestrator.evidence.picture import _floor, panels_of
from orchestrator.evidence.rendering import write_page
from orchestrator.evidence.rows import SEED, Row
from orchestrator.evidence.running import Order, Plan, estimate, make
from orchestrator.evidence.scales import SCALES, find_scale
from orchestrator.evidence.tables import TABLES, EvidenceTable, find_table
from orchestrator.sweeps.worker import Request, Result
from repsearch.config import load_config, parse_config
from repsearch.errors import ConfigError, JobError, NumericalError, StoreError
from repsearch.windows import evaluated
from tests.orchestrator_runs import complete

ROOT = Path(__file__).resolve().parents[1]
EVERY = [(scale, dataset, table) for scale in SCALES for dataset in SCALES[scale] for table in TABLES]


def order(folder: Path, **fields: Any) -> Order:
    given = {"table": "table1", "dataset": "mnist", "images": 300, "scale": "cpu", "seeds": 2, "trials": 3, "jobs": 1}
    return Order(**{**given, "data": folder / "data", "root": folder / "runs", "out": folder / "out", **fields})


class FakeWorkers:
    """Workers that remember what they ran, and die after `most` runs."""

    def __init__(self, most: int = 10**6, fails: str = "", curves: bool = True) -> None:
        self.most, self.fails, self.curves, self.stopped = most, fails, curves, False
        self.requests: list[Request] = []

    def run(self, request: Request) -> Result:
        if len(self.requests) == self.most:
            self.stopped = True
            raise JobError("the workers were told to end")
        self.requests.append(request)
        if self.fails and self.fails in request.folder:
            raise NumericalError("the loss is nan")
        lr, seed = request.config["learn"]["optimiser"]["lr"], request.config["run"]["seed"]
        metrics = {"validation/accuracy": 0.9 - lr, "test/accuracy": 0.8 + 0.01 * seed}
        curves = {"loss": [2.0 + seed, 1.0 + seed], "validation_accuracy": [0.1, 0.2]} if self.curves else {}
        return Result(metrics=metrics, evaluations=592, search_s=1, learn_s=2, seconds=3, wall_s=4, core_s=2.5, curves=curves)

    def stop(self) -> None:
        """Nothing to stop."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """A table of two rows, whose trials Optuna chooses and no worker runs."""
    rows = list(find_table("table1").rows(find_scale("cpu", "mnist"), 300))
    chosen = [rows[0], rows[4]]
    monkeypatch.setitem(TABLES, "table1", EvidenceTable("Two methods", lambda scale, images: chosen))
    return chosen


def perform(plan: Plan, workers: FakeWorkers, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    @contextmanager
    def instead(count: int, root: Path) -> Iterator[FakeWorkers]:
        yield workers

    monkeypatch.setattr(running, "Workers", instead)
    return make(plan, lambda _: None)


@pytest.mark.parametrize(("scale", "dataset", "table"), EVERY)
def test_every_value_of_every_row_makes_a_configuration(scale: str, dataset: str, table: str, tmp_path: Path) -> None:
    plan = Plan(order(tmp_path, scale=scale, dataset=dataset, table=table))
    titles = [row.title for row in plan.rows]
    assert len(set(titles)) == len(titles) and len({plan.row_folder(row) for row in plan.rows}) == len(titles)
    groups = [row.group for row in plan.rows]
    assert groups == sorted(groups, key=groups.index)
    for row in plan.rows:
        sweep = plan.sweep(row)
        assert sweep.config({}).run.seed == SEED and sweep.config({}).dataset["train"] == 300
        ends = {key: part.ends() for key, part in sweep.space.items()}
        for number in range(max(map(len, ends.values()))):
            sweep.config({key: values[number % len(values)] for key, values in ends.items()})
        # What is chosen is not what the row is about.
        assert not set(sweep.space) & set(row.settings)


@pytest.mark.parametrize(("scale", "dataset", "table"), EVERY)
def test_rows_without_search_learn_once(scale: str, dataset: str, table: str, tmp_path: Path) -> None:
    plan = Plan(order(tmp_path, table=table, dataset=dataset, images=None, scale=scale))
    configs = [plan.sweep(row).config({}) for row in plan.rows]
    assert {config.rounds.count for config in configs if config.rounds.policy["name"] == "learn_only"} <= {1}


def test_the_gpu_scale_is_the_papers_configuration(tmp_path: Path) -> None:
    for dataset in ("mnist", "cifar10"):
        plan = Plan(order(tmp_path, scale="gpu", dataset=dataset, images=None))
        evolution = next(row for row in plan.rows if row.name == "evolution")
        ours, paper = plan.sweep(evolution).config({}), load_config(ROOT / f"configs/paper-{dataset}.toml")
        for section in ("network", "search", "learn", "rounds", "searcher", "learner", "store"):
            assert getattr(ours, section) == getattr(paper, section), section
        assert ours.dataset["validation"] == paper.dataset["validation"]


def test_fewer_epochs_are_a_table_of_its_own(tmp_path: Path) -> None:
    whole, short = (Plan(order(tmp_path, table="rules", epochs=epochs)) for epochs in (None, 2))
    assert (whole.results.path.name, short.results.path.name) == ("rules-mnist-300.json", "rules-mnist-300-2-epochs.json")
    row = whole.rows[0]
    assert [plan.sweep(row).config({}).learn.epochs for plan in (whole, short)] == [20, 2]
    assert whole.row_folder(row) != short.row_folder(row)
    assert short.order.command(300).endswith("--trials=3 --epochs=2")
    with pytest.raises(ConfigError, match="--epochs: 0"):
        Plan(order(tmp_path, epochs=0))


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_rules_within_blocks_and_through_the_network_have_equal_evaluations(dataset: str, tmp_path: Path) -> None:
    plan = Plan(order(tmp_path, table="local", dataset=dataset))
    configs = {row.name: plan.sweep(row).config({}) for row in plan.rows}
    for rule in ("forward gradient", "node perturbation"):
        local, whole = (configs[f"{rule}, {objective}"] for objective in ("isolated regression", "cross-entropy"))
        assert local.learn.rule == whole.learn.rule and local.learn.objective["isolate"] and local.search.layers == [0, 1, "logits"]
        strategy = local.search.strategy
        passes = 1 + (local.learn.rule.get("draws") or local.learn.rule.get("passes"))
        # Results of runs tell 352 evaluations per image of two rounds.
        assert (strategy["population"], strategy["generations"], local.rounds.count) == (12, [6, 6, 2], 2)
        searched = 352
        learned = local.rounds.count * local.learn.epochs * passes
        assert whole.learn.epochs * passes == pytest.approx(searched + learned, abs=passes)
    wider = {row.name: plan.sweep(row).config({}) for row in plan.rows if row.group == "512-512"}
    local, whole = (
        wider[name] for name in ("node perturbation, isolated regression by unit", "forward gradient over weights, cross-entropy")
    )
    assert whole.network["widths"] == local.network["widths"] == [local.learn.objective["groups"]] * 2 == [512, 512]
    learned = local.rounds.count * local.learn.epochs * (1 + local.learn.rule["passes"])
    assert whole.learn.epochs * (1 + whole.learn.rule["draws"]) == pytest.approx(352 + learned, abs=5)


def test_every_row_has_the_same_trials_with_the_same_draws(tmp_path: Path, small: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    workers = FakeWorkers()
    plan = Plan(order(tmp_path))
    assert perform(plan, workers, monkeypatch) == []
    trials = [request for request in workers.requests if request.sweep]
    drawn = [(request.config["learn"]["optimiser"], request.config["network"]["convolutions"]) for request in trials]
    assert len(trials) == 6 and drawn[:3] == drawn[3:]
    assert {request.config["run"]["seed"] for request in trials} == {SEED}
    finals = [request for request in workers.requests if not request.sweep]
    assert [request.config["run"]["seed"] for request in finals] == [0, 1, 0, 1]
    # The highest validation accuracy of the fake is that of the lowest learning rate.
    lowest = min(optimiser["lr"] for optimiser, _ in drawn)
    assert {request.config["learn"]["optimiser"]["lr"] for request in finals} == {lowest}
    assert [request.config["learn"]["objective"]["name"] for request in finals] == ["cross_entropy"] * 2 + ["regression"] * 2


def test_results_say_what_was_chosen_and_what_made_them(tmp_path: Path, small: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(order(tmp_path))
    perform(plan, FakeWorkers(), monkeypatch)
    document = json.loads((tmp_path / "out" / "table1-mnist-300.json").read_text())
    assert [row["row"] for row in document["rows"]] == ["cross-entropy", "class code"]
    row = document["rows"][0]
    assert row["test"] == [0.8, 0.81] and row["mean"] == pytest.approx(0.805) and row["std"] == pytest.approx(0.01 / 2**0.5)
    assert set(row["chosen"]) == {"learn.optimiser.lr", "learn.optimiser.weight_decay", "network.convolutions"}
    assert row["evaluations"] == 592 and row["seconds"] == 3 and row["commit"] and row["hardware"]
    assert row["command"] == "orchestrator reproduce table1 --dataset=mnist --images=300 --scale=cpu --seeds=2 --trials=3"
    page = write_page("table1", plan.table, tmp_path / "out").read_text()
    assert "| cross-entropy | 80.50 ± 0.71 |  | 592 | 2 |" in page
    with Image.open(tmp_path / "out" / "table1.png") as picture:
        assert "](table1.png)" in page and picture.width > 400
    assert "| class code | 80.50 ± 0.71 | +0.00 | 592 | 2 |" in page


def test_a_page_has_the_results_of_its_table_alone(tmp_path: Path) -> None:
    head = {"title": "", "dataset": "mnist", "images": 300, "scale": "cpu", "rows": []}
    for table, images in (("loop", 300), ("loop-augmented", 700)):
        (tmp_path / f"{table}-mnist-{images}.json").write_text(json.dumps({**head, "table": table, "images": images}))
    page = write_page("loop", find_table("loop"), tmp_path).read_text()
    assert "300 training images" in page and "700" not in page


def test_values_chosen_for_another_table_need_no_trials(tmp_path: Path, small: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    perform(Plan(order(tmp_path)), FakeWorkers(), monkeypatch)
    source = tmp_path / "out" / "table1-mnist-300.json"
    known = {row["name"]: row["chosen"] for row in json.loads(source.read_text())["rows"]}
    small[1] = dataclasses.replace(small[1], name="class code, varied", method="class code")
    workers, plan = FakeWorkers(), Plan(order(tmp_path, images=500, values_from=source))
    assert perform(plan, workers, monkeypatch) == [] and plan.runs == 2
    assert [request.config["run"]["seed"] for request in workers.requests] == [0, 1, 0, 1]
    for request, name in zip(workers.requests[::2], ("cross-entropy", "class code"), strict=True):
        assert request.config["learn"]["optimiser"]["lr"] == known[name]["learn.optimiser.lr"]
    assert "values chosen for table1-mnist-300" in write_page("table1", plan.table, tmp_path / "out").read_text()
    small[1] = dataclasses.replace(small[1], method="gradient")
    with pytest.raises(ConfigError, match="has no row 'gradient'"):
        Plan(order(tmp_path, images=500, values_from=source))


def test_rows_are_made_as_long_as_one_took(tmp_path: Path, small: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    streamed = {"policy": {"name": "streaming"}, "count": 36, "examples_per_round": 125}
    small.append(dataclasses.replace(small[1], name="streaming", settings={**small[1].settings, "rounds": streamed}))
    perform(Plan(order(tmp_path)), FakeWorkers(), monkeypatch)
    source = tmp_path / "out" / "table1-mnist-300.json"
    document = json.loads(source.read_text())
    # Cross-entropy learns 12 epochs in 10 s; the code searches for 20 s and learns 12 epochs in 20 s; streaming is 12 passes in 100 s.
    times = {"cross-entropy": (0, 10, 10), "class code": (20, 20, 40), "streaming": (60, 40, 100)}
    for row in document["rows"]:
        row["search_s"], row["learn_s"], row["core_s"] = times[row["name"]]
    source.write_text(json.dumps(document))

    def lengths(reference: str) -> dict[str, tuple[int, int]]:
        plan, workers = Plan(order(tmp_path, seeds=1, values_from=source, equal_seconds=reference)), FakeWorkers()
        assert perform(plan, workers, monkeypatch) == []
        assert f"as many seconds as {reference}" in write_page("table1", plan.table, tmp_path / "out").read_text()
        configs = [request.config for request in workers.requests]
        return {row.name: (config["learn"]["epochs"], config["rounds"]["count"]) for row, config in zip(small, configs, strict=True)}

    assert lengths("streaming") == {"cross-entropy": (120, 1), "class code": (48, 1), "streaming": (12, 36)}
    assert lengths("class code") == {"cross-entropy": (48, 1), "class code": (12, 1), "streaming": (12, 15)}


def test_a_table_that_is_cut_goes_on(tmp_path: Path, small: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    cut = FakeWorkers(most=7)
    with pytest.raises(JobError):
        perform(Plan(order(tmp_path)), cut, monkeypatch)
    rest = FakeWorkers()
    perform(Plan(order(tmp_path)), rest, monkeypatch)
    # A row is five runs, the second of them cut after two trials; real workers read what the trials left.
    folders = [Path(request.folder).name for request in rest.requests]
    assert [folder[:6] for folder in folders] == ["trial-", "seed-0", "seed-1"] and folders[0] == "trial-0002"
    idle = FakeWorkers()
    assert perform(Plan(order(tmp_path)), idle, monkeypatch) == [] and idle.requests == []


def test_more_seeds_and_changed_rows_are_made_again(tmp_path: Path, small: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    perform(Plan(order(tmp_path)), FakeWorkers(), monkeypatch)
    more = FakeWorkers()
    perform(Plan(order(tmp_path, seeds=3)), more, monkeypatch)
    assert [Path(request.folder).name[:6] for request in more.requests] == ["seed-2"] * 2
    trials = FakeWorkers()
    perform(Plan(order(tmp_path, seeds=3, trials=4)), trials, monkeypatch)
    assert [Path(request.folder).name[:10] for request in trials.requests if request.sweep] == ["trial-0003"] * 2
    small[1] = dataclasses.replace(small[1], settings={**small[1].settings, "search.strategy.mix": 0.9})
    changed = FakeWorkers()
    perform(Plan(order(tmp_path, seeds=3, trials=4)), changed, monkeypatch)
    assert len(changed.requests) == 7 and all("class-code" in request.folder for request in changed.requests)


def test_more_seeds_need_none_of_the_runs_before(tmp_path: Path, small: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    perform(Plan(order(tmp_path)), FakeWorkers(), monkeypatch)
    first = Plan(order(tmp_path)).results.rows()[0]
    elsewhere = {"root": tmp_path / "other machine"}
    workers, plan = FakeWorkers(), Plan(order(tmp_path, seeds=4, **elsewhere))
    perform(plan, workers, monkeypatch)
    assert [request.config["run"]["seed"] for request in workers.requests] == [2, 3] * 2
    assert workers.requests[0].config["learn"]["optimiser"]["lr"] == first["chosen"]["learn.optimiser.lr"]
    row = plan.results.rows()[0]
    assert row["test"] == pytest.approx([0.8, 0.81, 0.82, 0.83]) and row["seeds"] == 4 and row["mean"] == pytest.approx(0.815)
    assert (row["trials"], row["validation"], row["chosen"]) == (3, first["validation"], first["chosen"])
    assert [part["command"] for part in row["before"]] == [first["command"]] and row["command"] != first["command"]
    page = write_page("table1", plan.table, tmp_path / "out").read_text()
    assert "- 2 rows: seeds 0 to 1, 3 trials each" in page and "- 2 rows: seeds 2 to 3, 3 trials each" in page
    # Once more, and nothing is left; a row of more trials is made anew, for its values may be others.
    idle = FakeWorkers()
    perform(Plan(order(tmp_path, seeds=4, **elsewhere)), idle, monkeypatch)
    assert idle.requests == []
    anew = Plan(order(tmp_path, seeds=4, trials=4, **elsewhere))
    perform(anew, FakeWorkers(), monkeypatch)
    assert [len(row["test"]) for row in anew.results.rows()] == [4, 4] and not any("before" in row for row in anew.results.rows())


def test_curves_are_means_over_all_seeds_and_drawn(tmp_path: Path, small: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    small[1] = dataclasses.replace(small[1], curves=("loss", "validation_accuracy"), group="by epoch")
    perform(Plan(order(tmp_path)), FakeWorkers(), monkeypatch)
    plan = Plan(order(tmp_path, seeds=3))
    perform(plan, FakeWorkers(), monkeypatch)
    rows = plan.results.rows()
    assert [row.get("curves") for row in rows] == [None, {"loss": [3.0, 2.0], "validation_accuracy": pytest.approx([0.1, 0.2])}]
    assert "(table1-mnist-300-by-epoch-curves.png)" in write_page("table1", plan.table, tmp_path / "out").read_text()
    with Image.open(tmp_path / "out" / "table1-mnist-300-by-epoch-curves.png") as picture:
        assert picture.width > 400
    # Runs of an earlier version have none: no curve of some of the seeds passes for that of all.
    perform(Plan(order(tmp_path, seeds=4)), FakeWorkers(curves=False), monkeypatch)
    assert plan.results.rows()[1]["seeds"] == 4 and "curves" not in plan.results.rows()[1]


def test_of_a_row_of_rounds_the_last_is_measured_alone(tmp_path: Path) -> None:
    plan = Plan(order(tmp_path, table="loop", dataset="cifar10", images=4000))
    rows = {row.name: row for row in plan.rows}
    streamed, learned_once = rows["streaming, evolution strategy"], rows["cross-entropy"]
    values = {"learn.optimiser.lr": 0.001, "learn.optimiser.weight_decay": 0.01, "search.nudge": 0.1}
    for config in (plan.sweep(streamed).config(values), parse_config(plan.final(streamed, values, 3).config)):
        assert [evaluated(config, 4000, round) for round in (0, 31, 478, 479)] == [False, False, False, True]
    assert plan.sweep(learned_once).config({}).rounds.evaluate_every is None
    # It is no part of what a row is: results from before, which were measured every pass, have the same digest.
    known = json.loads((ROOT / "benchmarks/evidence/loop-cifar10-4000.json").read_text())["rows"]
    digests = {record["row"]: record["digest"] for record in known}
    assert digests["streaming, evolution strategy"] == plan.digest(streamed)


def test_a_row_that_fails_does_not_stop_the_others(tmp_path: Path, small: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(order(tmp_path))
    assert perform(plan, FakeWorkers(fails="cross-entropy"), monkeypatch) == ["cross-entropy"]
    assert [row["row"] for row in plan.results.rows()] == ["class code"]
    with pytest.raises(JobError, match="1 rows failed: cross-entropy"):
        running.check_made(["cross-entropy"])


def test_two_rows_at_a_time_give_the_same(tmp_path: Path, small: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(jobs: int) -> list[Mapping[str, Any]]:
        plan = Plan(order(tmp_path / str(jobs), jobs=jobs))
        perform(plan, FakeWorkers(), monkeypatch)
        return [{key: value for key, value in row.items() if key != "jobs"} for row in plan.results.rows()]

    assert rows(1) == rows(2)


def test_the_estimate_counts_what_is_left(tmp_path: Path, small: list[Row]) -> None:
    plan = Plan(order(tmp_path))
    folder = plan.row_folder(small[0]) / "sweep" / "trial-0000"
    folder.mkdir(parents=True)
    result = Result(metrics={}, evaluations=0, search_s=0, learn_s=0, seconds=29, wall_s=30)
    (folder / "result.json").write_text(json.dumps(dataclasses.asdict(result)))
    assert estimate(plan) == [
        ("cross-entropy", "30.0", "2.0 min"),
        ("class code", "-", "not timed"),
        ("all, 1 at a time", "", "2.0 min and 1 rows that are not timed"),
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"table": "tabel1"}, "did you mean 'table1'"),
        ({"dataset": "minst"}, "did you mean 'mnist'"),
        ({"scale": "cpuu"}, "did you mean 'cpu'"),
        ({"seeds": 0}, "--seeds: 0"),
        ({"trials": 0}, "--trials: 0"),
        ({"jobs": 0}, "--jobs: 0"),
        ({"only": ("class cod",)}, "did you mean 'class code'"),
        ({"values_from": Path("nowhere.json")}, "nowhere.json: there is no such file"),
        ({"equal_seconds": "evolution"}, "--equal-seconds: needs the table"),
    ],
)
def test_bad_orders_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Plan(order(tmp_path, **fields))


def test_a_file_that_holds_no_results_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "table1-mnist-300.json").write_text("[]")
    plan = Plan(order(tmp_path))
    with pytest.raises(StoreError, match="holds no results"):
        plan.done(plan.rows[0])


def test_the_benchmark_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.evidence", "tabel1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "did you mean 'table1'" in done.stderr


@pytest.mark.slow
def test_a_small_table_on_mnist(real_data: Path, tmp_path: Path) -> None:
    arguments = ["--dataset", "mnist", "--images", "300", "--seeds", "2", "--trials", "1", "--jobs", "1", "--data", str(real_data)]
    rows = ["--row", "cross-entropy", "--row", "class code"]
    output = complete("reproduce", "table1", *arguments, *rows, "--root", "runs", "--out", "out", folder=tmp_path)
    assert "class code: test" in output
    document = json.loads((tmp_path / "out" / "table1-mnist-300.json").read_text())
    assert [len(row["test"]) for row in document["rows"]] == [2, 2]
    assert all(row["mean"] > 0.2 for row in document["rows"])
    assert (tmp_path / "out" / "table1.md").exists()


def test_a_picture_has_a_panel_per_group_and_leaves_out_rows_with_an_axis_or_alone() -> None:
    rows: list[dict[str, Any]] = [
        {"group": group, "x": x, "name": name}
        for group, x, name in (("a", "", 1), ("a", "", 2), ("b", "", 3), ("b", "", 4), ("c", "evaluations", 5), ("d", "", 6))
    ]
    panels = panels_of("MNIST", rows)
    assert [(heading, [row["name"] for row in members]) for heading, members in panels] == [("MNIST\na", [1, 2]), ("MNIST\nb", [3, 4])]


def test_a_picture_leaves_rows_out_only_where_they_are_few() -> None:
    def rows(*means: float) -> list[dict[str, Any]]:
        return [{"mean": mean, "std": 0.0} for mean in means]

    assert _floor(rows(0.95, 0.96, 0.97, 0.5)) == pytest.approx(95 - 3 * 2)
    assert _floor(rows(0.92, 0.87, 0.88, 0.84)) == 0, "the baseline is best by far"
