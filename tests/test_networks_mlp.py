"""The network of fully connected blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from repsearch.errors import ConfigError
from repsearch.families import NETWORKS
from repsearch.networks import build_network, calibrate, check_same_representations
from repsearch.networks.mlp import Mlp
from searcher.evaluation_network import evaluation_network
from tests.networks import made_up_data


def test_representations_are_vectors_of_the_widths() -> None:
    assert Mlp(widths=[12, 8]).check((3, 5, 7)) == ((12,), (8,))


def test_depth_inside_a_block_and_batchnorm_are_choices_that_keep_the_shapes() -> None:
    data = made_up_data()
    networks = [
        build_network({"name": "mlp", "widths": [12, 8], **fields}, data, seed=0, purpose="searched")
        for fields in ({}, {"layers": 3}, {"batchnorm": False})
    ]
    counts = [sum(isinstance(module, nn.Linear) for module in network.blocks.modules()) for network in networks]
    assert counts == [2, 6, 2]
    assert not any(isinstance(module, nn.BatchNorm1d) for module in networks[2].modules())
    for network in networks[1:]:
        check_same_representations(networks[0], network)


def test_calibration_fixes_batchnorm_of_vectors() -> None:
    data = made_up_data()
    network = build_network({"name": "mlp", "widths": [12, 8]}, data, seed=0, purpose="searched")
    calibrate(network, data.train.images)
    with torch.no_grad():
        below = network.stem(network.prepare(data.train.images))
        for block in network.blocks:
            normed = block.norms[0](block.linears[0](below))
            assert normed.mean(dim=0).abs().max() < 1e-3
            assert (normed.var(dim=0) - 1).abs().max() < 0.1
            below = block(below)


@pytest.mark.parametrize("fields", [{"widths": []}, {"widths": [1]}, {"widths": 8}, {"layers": 0}, {"head_scale": 0}])
def test_values_out_of_range_are_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=rf"network\.{next(iter(fields))}"):
        NETWORKS.build({"name": "mlp", **fields}, at="network")


def test_a_batchnorm_without_running_statistics_cannot_be_searched() -> None:
    network = build_network({"name": "mlp", "widths": [8]}, made_up_data(), seed=0, purpose="searched")
    network.blocks[0].norms[0] = nn.BatchNorm1d(8, track_running_stats=False)
    with pytest.raises(ConfigError, match="keep track_running_stats = True"):
        evaluation_network(network)
