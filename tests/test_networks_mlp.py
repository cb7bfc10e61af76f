"""The network of fully connected blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
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


@pytest.mark.parametrize("activation", ["gelu", "relu", "leaky_relu", "sign"])
@pytest.mark.parametrize("normalise", [True, False])
def test_activation_and_normalisation_are_choices(activation: str, normalise: bool) -> None:
    data = made_up_data()
    table = {"name": "mlp", "widths": [12, 8], "batchnorm": False, "activation": activation, "normalise": normalise}
    network = build_network(table, data, seed=0, purpose="learned")
    with torch.no_grad():
        below = network.stem(network.prepare(data.train.images))
        before = network.blocks[0].before_activation(below)  # type: ignore[operator]
        leaky = torch.where(before < 0, 0.2 * before, before)
        expected = {"gelu": F.gelu(before), "relu": F.relu(before), "leaky_relu": leaky, "sign": before.sign()}[activation]
        if normalise:
            expected = (expected - expected.mean(1, keepdim=True)) / (expected.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        assert network.normalises is normalise
        assert torch.allclose(network.run_layer(0, below), expected, atol=1e-5)
        for output in ("representation", "raw", "before_activation"):
            assert torch.equal(network.run_block(0, below, output)[0], network.run_layer(0, below))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_sign_s_derivative_is_that_of_the_value_cut_at_one() -> None:
    network = build_network({"name": "mlp", "widths": [4], "activation": "sign"}, made_up_data(), seed=0, purpose="learned")
    before = torch.tensor([[-1.5, -0.25, 0.5, 2.0]], requires_grad=True)
    after = network.blocks[0].activated(before)  # type: ignore[operator]
    assert after.tolist() == [[-1.0, -1.0, 1.0, 1.0]]
    (derivative,) = torch.autograd.grad(after.sum(), before)
    assert derivative.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    _, tangent = torch.func.jvp(network.blocks[0].activated, (before.detach(),), (torch.ones(1, 4),))
    assert torch.equal(tangent, derivative)
