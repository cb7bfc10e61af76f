"""A user's own network, from an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.batches import TrainingSet
from learner.checkpoints import NoCheckpoints
from learner.fit import fit
from learner.objectives.regression import Regression
from learner.optimisers.adamw import AdamW
from repsearch.config import parse_config
from repsearch.errors import ConfigError
from repsearch.families import NETWORKS
from repsearch.networks import build_network, calibrate, outputs_of_blocks
from searcher.evaluation_network import evaluation_network
from tests.learner_support import Recorder, plan_for
from tests.networks import made_up_data

SOURCE = '''
from dataclasses import dataclass

from torch import nn

from repsearch.networks import SearchableNetwork


@dataclass(frozen=True, kw_only=True)
class Strided:
    """A strided convolution and a linear layer.

    channels: channels of the block.
    """

    channels: int = 4

    def check(self, input_shape):
        return ((self.channels, input_shape[1] // 2, input_shape[2] // 2),)

    def build(self, *, input_shape, classes, mean, std, stem_images, rng):
        return Module(self, input_shape, classes, mean, std, rng)


class Module(SearchableNetwork):
    def __init__(self, spec, input_shape, classes, mean, std, rng):
        super().__init__(mean=mean, std=std)
        self.block_shapes = spec.check(input_shape)
        self.classes = classes
        self.stem = nn.Identity()
        conv = nn.Conv2d(input_shape[0], spec.channels, 2, stride=2)
        self.blocks = nn.ModuleList([nn.Sequential(conv, nn.BatchNorm2d(spec.channels), nn.ReLU())])
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
        self.head(self.blocks.eval()[0](self.prepare(stem_images_of(input_shape))))
        for parameter in self.parameters():
            parameter.data.normal_(0, 0.3, generator=rng)


def stem_images_of(shape):
    import torch

    return torch.zeros(1, *shape)
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two plug-ins of a package that is installed for the test: one that works and one whose module is missing."""
    (tmp_path / "strided_networks.py").write_text(SOURCE)
    information = tmp_path / "strided_networks-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: strided-networks\nVersion: 1.0\n")
    points = "[repsearch.networks]\nstrided = strided_networks:Strided\nbroken = strided_networks_gone:Gone\n"
    (information / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
def test_a_network_of_an_installed_package_is_built_calibrated_and_searched() -> None:
    assert "strided" in NETWORKS.names()
    data = made_up_data()
    network = build_network({"name": "strided", "channels": 5}, data, seed=0, purpose="searched")
    assert network.block_shapes == ((5, 4, 4),)
    calibrate(network, data.train.images)
    searched = evaluation_network(network)
    with torch.no_grad():
        block, logits = searched.representations(data.train.images)
        assert torch.equal(searched.run_from(0, block), logits)
        assert torch.allclose(network(data.train.images), logits, atol=1e-4)


@pytest.mark.usefixtures("installed")
def test_it_learns_from_targets_and_is_refused_a_match_that_it_does_not_declare() -> None:
    data = made_up_data()
    network = build_network({"name": "strided", "channels": 5}, data, seed=0, purpose="learned")
    targets = {"block0": torch.randn(len(data.train), 5, 4, 4, generator=torch.Generator().manual_seed(0))}
    plan = plan_for(epochs=5, objective=Regression(), optimiser=AdamW(lr=0.02))
    state = fit(network, TrainingSet.on("cpu", data.train, targets), data.validation, plan, NoCheckpoints(), Recorder())
    assert state.history[-1]["loss_block0"] < state.history[0]["loss_block0"]
    with pytest.raises(ConfigError, match=r"learn\.objective\.match: .*set it to normalised"):
        Regression(match="raw").check([0], 1, outputs_of_blocks(NETWORKS.build({"name": "strided"})))


@pytest.mark.usefixtures("installed")
def test_its_fields_are_checked_like_any_others() -> None:
    config = parse_config({"network": {"name": "strided", "channels": 6}})
    assert config.network == {"name": "strided", "channels": 6}
    with pytest.raises(ConfigError, match=r"network\.chanels: unknown key 'chanels'; did you mean 'channels'"):
        NETWORKS.build({"name": "strided", "chanels": 6}, at="network")


@pytest.mark.usefixtures("installed")
def test_a_package_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ConfigError, match=r"plug-in 'broken' \(strided_networks_gone:Gone, from strided-networks\) cannot be imported"):
        NETWORKS.build({"name": "broken"}, at="network")
