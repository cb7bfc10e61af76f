"""Studies through the command line: real daemons, the store, and what is refused before anything starts."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import cli
from orchestrator.journal import read_journal
from orchestrator.runs import open_run
from orchestrator.studies import STUDIES, running
from orchestrator.studies.base import Base, LearningStudy, images_of
from orchestrator.studies.ensemble import representation_row
from orchestrator.studies.strategies import evaluations, table_of, with_evaluations, with_population
from orchestrator.verify import verify
from repsearch.config import parse_config
from repsearch.errors import ConfigError, RepSearchError
from store import layout, open_store
from tests.orchestrator_runs import complete, write_config
from tests.serving_processes import daemon

EVOLUTION = {
    "name": "evolution",
    "population": 8,
    "parents": 2,
    "explorers": 3,
    "refiners": 3,
    "generations": [6, 6, 2],
    "strength": [0.3, 0.2, 0.1],
    "boost": [5.0, 3.0, 1.0],
    "blur_passes": [1, 0, 0],
}


@pytest.fixture(scope="module")
def base() -> Base:
    config = parse_config({"search": {"layers": [0, 1, "logits"], "strategy": EVOLUTION}})
    return Base(config=config, layers={"block0": (8, 4, 4), "block1": (8, 2, 2), "logits": (10,)}, classes=10)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """A folder, and the arguments that name its configuration and the daemons that serve its runs: started once for all studies."""
    folder = tmp_path_factory.mktemp("studies")
    options = ("--device", "cpu", "--threads", "1")
    with (
        daemon(folder / "runs", *options, module="searcher") as searcher,
        daemon(folder / "runs", *options, module="learner", service="learner") as learner,
    ):
        addresses = ["--set", f'searcher.addresses=["{searcher.address}"]', "--set", f"learner.address={learner.address}"]
        yield folder, [str(write_config(folder)), "--images", "40", *addresses]


@pytest.fixture(scope="module")
def scaling(place: tuple[Path, list[str]]) -> Path:
    """A finished study of two settings per axis."""
    folder, arguments = place
    options = ["--set", "study.factors=[0.5, 1]", "--set", "search.searches_per_example=2"]
    output = complete("study", "scaling", *arguments, *options, folder=folder)
    run = folder / "runs/tiny-scaling-1"
    assert f"study: {run}" in output
    return run


def test_a_study_leaves_a_whole_run_folder(scaling: Path) -> None:
    assert verify(scaling) == []
    run = open_run(scaling)
    assert run.study["name"] == "scaling"
    assert run.study["images"] == 40
    records = read_journal(scaling)
    assert [record["kind"] for record in records[-2:]] == ["analysis_ready", "run_finished"]
    assert {record["round"] for record in records if record["kind"] == "point"} == {0, 1, 2, 3}


def test_scaling_tells_what_was_searched(scaling: Path) -> None:
    found = rows(scaling / "analysis/scaling.csv")
    assert len(found) == 2 * 2 * 3
    assert {row["population"] for row in found if row["axis"] == "population"} == {"4", "8"}
    assert [row["generations"] for row in found if row["axis"] == "generations" and row["layer"] == "block0"] == ["3", "6"]
    assert all(float(row["p10"]) <= float(row["p90"]) and float(row["cross_entropy"]) <= float(row["before"]) for row in found)
    assert {row["images"] for row in found} == {"40"}
    assert {row["searches"] for row in found} == {"2"}
    assert (scaling / "analysis/scaling.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_goes_on_from_what_is_committed(scaling: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table, documents = (scaling / "analysis/scaling.csv").read_text(), sorted((scaling / "rounds").glob("*/*.json"))
    written = [path.stat().st_mtime_ns for path in documents]
    (scaling / "analysis/scaling.csv").unlink()
    monkeypatch.setattr(sys, "argv", ["orchestrator", "resume", str(scaling)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, capsys.readouterr().err
    assert (scaling / "analysis/scaling.csv").read_text() == table
    assert [path.stat().st_mtime_ns for path in documents] == written


def test_a_study_is_not_compared_with_runs(scaling: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert refuse(["compare", str(scaling)], monkeypatch, capsys)[0] == 2


@pytest.mark.parametrize("kind", ["diversity", "targets"])
def test_the_other_studies(kind: str, place: tuple[Path, list[str]]) -> None:
    folder, arguments = place
    arguments = ["study", kind, *arguments, "--set", "search.searches_per_example=3", "--name", kind]
    if kind == "diversity":
        arguments += ["--strategies", "evolution,gradient", "--set", "study.fields={gradient={step=[1.0, 1.0, 1.0]}}"]
    complete(*arguments, folder=folder)
    assert verify(folder / "runs" / kind) == []
    found = rows(folder / f"runs/{kind}/analysis/{kind}.csv")
    if kind == "targets":
        assert [row["part"] for row in found] == ["own", "found", "difference"] * 3
        for row in found:
            assert sum(float(row[f"share_{level}"]) for level in ("class", "image", "search")) == pytest.approx(1, abs=1e-4)
        return
    assert {row["strategy"] for row in found} == {"evolution", "gradient", "noise of the same size"}
    for row in (row for row in found if row["n_eff"]):
        # Exact gradients know no chance, so that independent searches find one and the same result.
        assert 1 - 1e-6 <= float(row["n_eff"]) <= (1 + 1e-6 if row["strategy"] == "gradient" else int(row["searches"]))


REFUSED: dict[str, tuple[list[str], str]] = {
    "unknown study": (["scalng"], "unknown name 'scalng'; did you mean 'scaling'?; known: scaling, diversity, targets, ensemble"),
    "unknown field": (["scaling", "--set", "study.factor=[1.0]"], "study.factor: unknown key 'factor'; did you mean 'factors'?"),
    "unknown strategy": (["scaling", "--strategies", "evolutoin"], "did you mean 'evolution'"),
    "a strategy without evaluations": (["scaling", "--strategies", "evolution,none"], "strategy 'none' evaluates no candidates"),
    "a strategy without a population": (["scaling", "--strategies", "gradient"], "strategy 'gradient' has no population to vary"),
    "no images": (["scaling", "--images", "0"], "study.images: 0 images to search"),
    "more images than there are": (["diversity", "--images", "201", "--set", "search.searches_per_example=2"], "give 1 to 200"),
    "one search": (["diversity"], "search.searches_per_example is 1"),
    "no factor": (["scaling", "--set", "study.factors=[]"], "study.factors"),
    "factor zero": (["scaling", "--set", "study.factors=[0.0]"], "study.factors"),
    "a study of targets with several strategies": (["targets", "--strategies", "evolution,none"], "unknown key 'strategies'"),
    "too few images for classes": (
        ["targets", "--images", "10", "--set", "search.searches_per_example=2"],
        "study.images: 10 images of 10 classes",
    ),
}


def refuse(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["orchestrator", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return ended.value.code, error


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_starts_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (kind, *options), message = REFUSED[case]
    code, error = refuse(["study", kind, str(write_config(tmp_path)), *options], monkeypatch, capsys)
    assert code == 2
    assert message in error
    assert not (tmp_path / "runs").exists()


def test_a_study_that_learns_takes_all_images_and_every_other_a_number() -> None:
    for name in STUDIES.names():
        if issubclass(STUDIES.member(name), LearningStudy):
            assert images_of(running.study_table(name, [], {}), 300) == 300
        else:
            assert images_of(running.study_table(name, [], {"images": 7}), 300) == 7


@pytest.mark.parametrize("population", [2, 3, 5, 16, 100])
def test_a_scaled_population_adds_up(population: int, base: Base) -> None:
    table = with_population(table_of(base, "evolution", {}), population)
    assert table["population"] == population
    assert evaluations(base, table)[0] == population + 6 * (population - table["parents"])


@pytest.mark.parametrize("name", ["random_search", "evolution_strategy", "quality_diversity"])
def test_other_strategies_have_as_many_evaluations(name: str, base: Base) -> None:
    wanted = evaluations(base, table_of(base, "evolution", {}))
    table = with_population(table_of(base, name, {}), 8)
    found = evaluations(base, with_evaluations(base, table, wanted, "scaling"))
    # The nearest whole number of generations: half a generation of 8 or 9 candidates away at most.
    assert all(abs(one - two) <= 5 for one, two in zip(found, wanted, strict=True))


def test_what_strategies_share_comes_from_the_configuration(base: Base) -> None:
    table = table_of(base, "random_search", {"strength": [0.5, 0.5, 0.5]})
    assert (table["population"], table["blur_passes"], table["strength"]) == (8, [1, 0, 0], [0.5, 0.5, 0.5])
    assert table_of(base, "gradient", {})["blur_passes"] == [0, 0, 0]
    with pytest.raises(ConfigError):
        table_of(base, "random_search", {"strength": [-1.0]})
    with pytest.raises(RepSearchError):
        table_of(base, "nothing", {})


def test_an_ensemble_learns_from_as_many_searches_beside_as_many_seeds(
    place: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, (config, _, _, *addresses) = place
    options = ["--set", "study.members=2", "--set", 'study.arms=["targets", "seeds", "cross_entropy"]', "--set", "learn.epochs=2"]
    output = complete("study", "ensemble", config, *addresses, *options, "--set", "study.examples=50", "--name", "some", folder=folder)
    run = folder / "runs/some"
    assert "cross_entropy" in output
    assert verify(run) == []
    arms = {row["arm"]: row for row in rows(run / "analysis/ensemble.csv")}
    assert list(arms) == ["targets", "seeds", "cross_entropy"]
    evaluations = float(arms["seeds"]["evaluations"])
    assert evaluations > 0
    assert [float(row["evaluations"]) for row in arms.values()] == [2 * evaluations, evaluations, 0]
    assert {row["examples_learned"] for row in arms.values()} == {str(2 * 2 * 200)}

    members = rows(run / "analysis/ensemble-members.csv")
    assert [(row["result"], row["seed"]) for row in members] == [("0", "0"), ("1", "0"), ("0", "0"), ("0", "1"), ("", "0"), ("", "1")]
    networks = [network_of(run, number) for number in range(1, 7)]
    # The same search result from the same seed is the same network; another of either is another.
    assert networks[0] == networks[2]
    assert len({*networks}) == 5
    for row, network in zip(members, range(1, 7), strict=True):
        attributes = attributes_of(run, network)
        assert float(row["test_accuracy"]) == pytest.approx(attributes["test_accuracy"])
        assert float(row["validation_accuracy"]) == pytest.approx(attributes["validation_accuracy"])
    for row in rows(run / "analysis/ensemble-representations.csv"):
        assert 1 - 1e-6 <= float(row["n_eff"]) <= 2 + 1e-6
        assert 1 - 1e-6 <= float(row["n_eff_alignment"]) <= 2 + 1e-6
    assert (run / "analysis/ensemble.png").read_bytes().startswith(b"\x89PNG")

    # Everything is there: going on learns nothing again and writes the same.
    table = (run / "analysis/ensemble.csv").read_text()
    (run / "analysis/ensemble.csv").unlink()
    monkeypatch.setattr(sys, "argv", ["orchestrator", "resume", str(run)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, capsys.readouterr().err
    assert (run / "analysis/ensemble.csv").read_text() == table
    assert all(len(list((run / f"rounds/{number:05d}/network").glob("learned-a*"))) == 1 for number in range(1, 7))


def attributes_of(run: Path, number: int) -> dict[str, Any]:
    store = open_store(run)
    reference = store.read_document(layout.report_document(number))["learned"]
    return dict(store.manifest(reference["path"]).attributes)


def network_of(run: Path, number: int) -> tuple[str, ...]:
    """Digests of the parameters that round `number` of a study learned."""
    store = open_store(run)
    arrays = store.manifest(store.read_document(layout.report_document(number))["learned"]["path"]).arrays
    return tuple(digest for name in sorted(arrays) for digest in arrays[name].chunk_digests)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("study.members=1", "study.members"),
        ('study.arms=["targets", "targets"]', "an arm is given twice"),
        ('study.arms=["labels"]', "study.arms"),
        ("study.images=40", "unknown key 'images'"),
        ("learn.objective=cross_entropy", "learns from labels alone"),
    ],
)
def test_an_ensemble_that_makes_no_sense_is_refused(
    option: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = refuse(["study", "ensemble", str(write_config(tmp_path)), "--set", option], monkeypatch, capsys)
    assert code == 2
    assert message in error
    assert not (tmp_path / "runs").exists()


def test_equal_networks_are_one_representation_and_orthogonal_ones_two() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(40, 8)) * [1, 1, 1, 1, 0, 0, 0, 0]
    other = np.roll(one, 4, axis=1)
    assert representation_row("x", "test", "block0", [one, one])["n_eff"] == pytest.approx(1)
    row = representation_row("x", "test", "block0", [one, other])
    # Other channels for the same: distinct for an image, the same to alignment.
    assert row["n_eff"] == pytest.approx(2)
    assert row["n_eff_alignment"] == pytest.approx(1)
