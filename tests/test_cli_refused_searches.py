"""Searches that cannot be, through the command line's dry run and a searcher's check: exit code, message, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from repsearch.config import load_config
from repsearch.errors import RepSearchError
from repsearch.rpc.v1 import jobs_pb2
from searcher.jobs import run_job
from tests.learner_support import Recorder, request_for
from tests.orchestrator_runs import write_config
from tests.test_cli_refusals import refuse

PLUGINS = '''
from dataclasses import dataclass, replace

from torch import nn

from repsearch.datasets.digits import Digits
from repsearch.datasets.splitting import assemble
from repsearch.networks import SearchableNetwork


@dataclass(frozen=True, kw_only=True)
class Wrong(Digits):
    """Digits, one with a label that no class has.

    label: the label.
    """

    label: int = 10

    def load(self, *, seed):
        data = super().load(seed=seed)
        data.train.labels[7] = self.label
        return assemble("wrong", data.classes, train=data.train, validation=data.validation, test=data.test)


@dataclass(frozen=True, kw_only=True)
class Unfit:
    """A network that cannot be searched.

    fault: what is wrong with it.
    """

    fault: str = "statistics"

    def check(self, input_shape):
        return ((4, 8, 8), (4, 8, 8))

    def build(self, *, input_shape, classes, mean, std, stem_images, rng):
        network = SearchableNetwork(mean=mean, std=std)
        network.block_shapes, network.classes, network.stem = self.check(input_shape), classes, nn.Identity()
        network.blocks = nn.ModuleList([nn.Conv2d(1, 4, 3, padding=1), Block(self.fault)])
        network.head = nn.Sequential(nn.Flatten(), nn.Linear(256, classes))
        return network


class Block(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.norm = nn.BatchNorm2d(4, track_running_stats=fault != "statistics")

    def forward(self, maps):
        if self.fault == "raises" and not self.training:
            raise RuntimeError("no evaluation mode")
        return self.norm(maps)
'''
BLUR = "layer 0 has a map of 3x3; set at most 1 for it"
SMALL = "search.memory_mb: one image at a time need"
CASES: dict[str, tuple[list[str], int, str]] = {
    "parts that do not add up": (["search.strategy.explorers=9"], 2, "parents 2 + explorers 9 + refiners 3 = 14, but population is 8"),
    "more parents than candidates": (["search.strategy.parents=8"], 2, "population 8 is smaller than parents + 1 = 9"),
    "negative explorers": (["search.strategy.explorers=-1"], 2, "search.strategy.explorers: should be greater than or equal to 0"),
    "a schedule for a layer that is not searched": (["search.layers=[0, 1]"], 2, "3 values [6, 6, 2] for 2 search layers [0, 1]"),
    "a layer without a schedule": (["search.strategy.strength=[0.3, 0.2]"], 2, "search.strategy.strength: 2 values"),
    "a step of zero": (['search.strategy={name="gradient", step=[0.0, 0.3, 0.3]}'], 2, "step.0: should be greater than 0"),
    "a step too long": (['search.strategy={name="evolution_strategy", step=[1e9, 0.3, 0.3]}'], 2, "step.0: should be less than or equal"),
    "a negative strength": (["search.strategy.strength=[0.3, -0.2, 0.1]"], 2, "strength.1: should be greater than 0"),
    "a negative blur": (["search.strategy.blur_passes=[-1, 0, 0]"], 2, "blur_passes.0: should be greater than or equal to 0"),
    "a map smaller than the blur": (["search.strategy.blur_passes=[2, 0, 0]"], 2, BLUR),
    "a gradient's blur": (
        ['search.strategy={name="gradient", steps=[1, 1, 1], step=[0.3, 0.3, 0.3], blur_passes=[4, 0, 0]}'],
        2,
        BLUR,
    ),
    "a label above the classes": (["dataset.name=wrong"], 3, "training image 7: label 10 is not in 0..9"),
    "a negative label": (["dataset.name=wrong", "dataset.label=-1"], 3, "training image 7: label -1 is not in 0..9"),
    "a BatchNorm of the batch": (['network={name="unfit"}'], 2, "network: blocks.1.norm is a BatchNorm without running statistics"),
    "no evaluation mode": (
        ['network={name="unfit", fault="raises"}'],
        2,
        "network: the part above block0 does not run in evaluation mode (RuntimeError: no evaluation mode)",
    ),
    "no room for one image": (['search.micro_batch="auto"', "search.memory_mb=10"], 2, SMALL),
    "no room for the tile": (["search.micro_batch=100000"], 2, "search.micro_batch = 100000 images at a time need"),
    "a tile of none": (["search.micro_batch=0"], 2, "search.micro_batch"),
    "a budget of none": (["search.memory_mb=0"], 2, "search.memory_mb"),
}


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with a dataset and a network at fault."""
    (tmp_path / "unfit_plugins.py").write_text(PLUGINS)
    information = tmp_path / "unfit_plugins-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: unfit-plugins\nVersion: 1.0\n")
    points = "[repsearch.networks]\nunfit = unfit_plugins:Unfit\n[repsearch.datasets]\nwrong = unfit_plugins:Wrong\n"
    (information / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_refuses(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings, code, message = CASES[case]
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    exit_code, error = refuse(["run", str(write_config(tmp_path)), "--dry-run", *arguments], monkeypatch, capsys)
    assert message in error
    assert exit_code == code
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("case", CASES)
def test_a_searcher_refuses_to_check(case: str, tmp_path: Path) -> None:
    """A searcher answers for itself: it may be told of a configuration that an orchestrator has not checked."""
    settings, code, message = CASES[case]
    with pytest.raises(RepSearchError) as refused:
        config = load_config(write_config(tmp_path), settings)
        run_job(request_for(config, check=jobs_pb2.CheckSpec()), Recorder(store_root=tmp_path / "runs"))
    assert message in str(refused.value)
    assert refused.value.exit_code == code
    assert not (tmp_path / "runs").exists()
