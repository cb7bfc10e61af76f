"""The network contract, and the convnet of the source paper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from repsearch.errors import ConfigError, StoreError
from repsearch.families import NETWORKS
from repsearch.networks import build_network, calibrate, check_same_representations, load_arrays, network_digest, to_arrays
from repsearch.networks.convnet import ConvNet, halve
from searcher.evaluation_network import FrozenNorm, evaluation_network, is_identity
from tests.networks import made_up_data, made_up_network, perturb

EXAMPLES = {"convnet": {"width": 32, "blocks": 2}}
"""Fields that fit 8x8 grey, 28x28 grey and 32x32 colour images, for the contract of every member."""


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", NETWORKS.members)
def test_running_from_any_block_equals_the_whole_forward(name: str, shape: tuple[int, int, int]) -> None:
    data = made_up_data(shape)
    network = build_network({"name": name, **EXAMPLES[name]}, data, seed=0, purpose="learned")
    images = data.train.images[:8]
    representations = network.representations(images)
    assert torch.equal(network(images), representations[-1])
    for layer, representation in enumerate(representations):
        assert representation.shape[1:] == network.layer_shape(layer)
        assert torch.equal(network.run_from(layer, representation), representations[-1])


@pytest.mark.parametrize("name", NETWORKS.members)
def test_parameters_survive_the_journey_through_arrays(name: str) -> None:
    data = made_up_data()
    table = {"name": name, **EXAMPLES[name]}
    first, second = (build_network(table, data, seed=seed, purpose="learned") for seed in (0, 1))
    assert network_digest(first) != network_digest(second)
    load_arrays(second, to_arrays(first))
    assert network_digest(first) == network_digest(second)
    with pytest.raises(StoreError, match=r"missing \['head"):
        load_arrays(second, {key: value for key, value in to_arrays(first).items() if not key.startswith("head")})


@pytest.mark.parametrize("name", NETWORKS.members)
def test_the_same_seed_and_purpose_give_the_same_network(name: str) -> None:
    data = made_up_data()
    table = {"name": name, **EXAMPLES[name]}
    digests = {network_digest(build_network(table, data, seed=0, purpose=purpose)) for purpose in ("learned", "learned", "searched")}
    assert len(digests) == 2


def test_block_shapes_are_the_papers_on_cifar10() -> None:
    assert ConvNet(width=256).check((3, 32, 32)) == ((256, 15, 15), (256, 7, 7), (256, 3, 3))


def test_images_too_small_for_the_blocks_are_refused_with_the_number_that_fits() -> None:
    with pytest.raises(ConfigError, match="3 blocks do not fit 8x8 images; set it to 2 or fewer"):
        ConvNet(blocks=3).check((1, 8, 8))
    with pytest.raises(ConfigError, match=r"network\.width: 16 is below the stem's 24 channels"):
        ConvNet(width=16).check((3, 32, 32))


def test_a_search_copy_and_a_deeper_network_share_block_shapes_and_others_are_refused() -> None:
    data = made_up_data()
    searched = made_up_network(data)
    check_same_representations(searched, made_up_network(data, convolutions=6))
    with pytest.raises(ConfigError, match="16x3x3, 16x1x1 differ from the learned network's 32x3x3, 32x1x1"):
        check_same_representations(searched, made_up_network(data, width=32))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_stem_whitens_patches_and_holds_each_filters_negative(shape: tuple[int, int, int]) -> None:
    data = made_up_data(shape)
    network = build_network({"name": "convnet", "width": 32}, data, seed=0, purpose="learned")
    filters = network.stem.weight
    half = len(filters) // 2
    assert half == 4 * shape[0]
    assert torch.equal(filters[:half], -filters[half:])
    outputs = F.conv2d(network.prepare(data.train.images), filters[:half]).transpose(0, 1).flatten(1)
    covariance = outputs @ outputs.T / outputs.shape[1]
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    assert off_diagonal.abs().max() < 0.01
    assert (covariance.diagonal() - 1).abs().max() < 0.1


def test_convolutions_start_as_identities_in_their_first_input_channels() -> None:
    data = made_up_data()
    network = build_network({"name": "convnet", "width": 16, "blocks": 2}, data, seed=0, purpose="learned")
    first, *others = [module for module in network.blocks.modules() if isinstance(module, torch.nn.Conv2d)]
    maps = torch.randn(2, 8, 5, 5)
    assert torch.equal(first(maps)[:, :8], maps)
    assert not is_identity(first)
    assert len(others) == 7
    assert all(is_identity(conv) for conv in others)


@pytest.mark.parametrize("convolutions", [2, 6])
def test_skipping_identity_convolutions_gives_exactly_equal_output(convolutions: int) -> None:
    data = made_up_data((1, 28, 28))
    network = made_up_network(data, blocks=3, convolutions=convolutions)
    skipping, whole = evaluation_network(network), evaluation_network(network, skip_identities=False)
    count = sum(isinstance(module, torch.nn.Conv2d) for module in skipping.modules())
    assert count == 1
    with torch.no_grad():
        for one, other in zip(skipping.representations(data.train.images), whole.representations(data.train.images), strict=True):
            assert torch.equal(one, other)


def test_an_evaluation_network_computes_what_the_network_computes() -> None:
    data = made_up_data((1, 28, 28))
    network = perturb(made_up_network(data, blocks=3))
    searched = evaluation_network(network)
    assert not any(is_identity(module) for module in searched.modules() if isinstance(module, torch.nn.Conv2d))
    with torch.no_grad():
        assert torch.allclose(searched(data.train.images), network(data.train.images), atol=1e-4)
    assert any(isinstance(module, FrozenNorm) for module in searched.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_calibration_fixes_batchnorm_on_what_reaches_it() -> None:
    data = made_up_data((1, 28, 28))
    network = build_network({"name": "convnet", "width": 16}, data, seed=0, purpose="searched")
    calibrate(network, data.train.images)
    with torch.no_grad():
        below = network.stem(network.prepare(data.train.images))
        for block in network.blocks:
            group = block.groups[0]
            normed = group.norm1(halve(group.conv1(below)))
            assert normed.mean(dim=(0, 2, 3)).abs().max() < 1e-3
            assert (normed.var(dim=(0, 2, 3)) - 1).abs().max() < 0.1
            below = block(below)
        loss = F.cross_entropy(network(data.train.images), data.train.labels)
    assert loss < 4


def test_halving_without_gradients_equals_max_pooling() -> None:
    maps = torch.randn(2, 3, 7, 9)
    with torch.no_grad():
        assert torch.equal(halve(maps), F.max_pool2d(maps, 2))
    assert torch.equal(halve(maps.requires_grad_()), F.max_pool2d(maps, 2))
