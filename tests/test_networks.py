"""The contract of every network, and the convnet of the source paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from repsearch.datasets.base import Data
from repsearch.errors import ConfigError, StoreError
from repsearch.families import NETWORKS
from repsearch.networks import (
    SearchableNetwork,
    build_network,
    calibrate,
    check_same_representations,
    depends_on_batch,
    load_arrays,
    network_digest,
    outputs_of_blocks,
    to_arrays,
)
from repsearch.networks.convnet import ConvNet, halve, normalised
from searcher.evaluation_network import evaluation_network, is_identity
from tests.networks import made_up_data, made_up_network, perturb

EXAMPLES: dict[str, dict[str, Any]] = {
    "convnet": {"width": 32, "blocks": 2},
    "mlp": {"widths": [32, 24]},
    "torchvision": {"model": "resnet18", "stages": ["layer1", "layer2", "layer3"]},
}
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


@pytest.mark.parametrize("name", NETWORKS.members)
def test_building_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    build_network({"name": name, **EXAMPLES[name]}, made_up_data(), seed=0, purpose="learned")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NETWORKS.members)
def test_shapes_are_known_without_building(name: str) -> None:
    data = made_up_data((3, 32, 32), train=8)
    table = {"name": name, **EXAMPLES[name]}
    assert NETWORKS.build(table).check(data.input_shape) == build_network(table, data, seed=0, purpose="learned").block_shapes


@pytest.mark.parametrize("name", NETWORKS.members)
def test_running_the_rest_leaves_a_representation_as_it_is(name: str) -> None:
    data = made_up_data()
    network = evaluation_network(calibrated(name, data))
    images = data.train.images[:8]
    inputs = network.prepare(images)
    kept_inputs = inputs.clone()
    representations = network.run_prepared(inputs)
    kept = [representation.clone() for representation in representations]
    for layer, representation in enumerate(representations):
        network.run_from(layer, representation)
    assert torch.equal(inputs, kept_inputs)
    assert all(torch.equal(one, other) for one, other in zip(representations, kept, strict=True))


@pytest.mark.parametrize("name", NETWORKS.members)
def test_the_copy_for_search_computes_the_same_and_each_example_alone(name: str) -> None:
    data = made_up_data((3, 32, 32), train=32)
    network = perturb(calibrated(name, data))
    searched = evaluation_network(network)
    assert not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in searched.modules())
    images = data.train.images[:8]
    with torch.no_grad():
        expected = network(images)
        assert torch.allclose(searched(images), expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
        assert torch.allclose(searched(images[:3]), expected[:3], rtol=1e-3, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize("name", NETWORKS.members)
def test_calibrated_representations_have_about_the_form_of_candidates(name: str) -> None:
    data = made_up_data((1, 28, 28))
    network = calibrated(name, data)
    assert not any(module.training for module in network.modules())
    with torch.no_grad():
        *blocks, _ = network.representations(data.train.images)
    for representation in blocks:
        assert abs(float(representation.mean())) < 0.3
        assert 0.7 < float(representation.std()) < 1.3
        if network.normalises:
            assert torch.allclose(representation, normalised(representation), atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS.members)
def test_learning_takes_a_network_from_where_it_is(name: str) -> None:
    data = made_up_data()
    network = calibrated(name, data).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(network(data.train.images), data.train.labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", NETWORKS.members)
def test_an_exported_network_predicts_the_same(name: str) -> None:
    data = made_up_data()
    network = calibrated(name, data)
    images = data.train.images[:4]
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        assert torch.equal(program.module()(images), network(images))


@pytest.mark.parametrize("name", NETWORKS.members)
def test_a_block_gives_every_output_that_its_network_declares_beside_the_representation(name: str) -> None:
    data = made_up_data()
    table = {"name": name, **EXAMPLES[name]}
    network = calibrated(name, data)
    below = network.stem(network.prepare(data.train.images[:8]))
    for layer in range(network.logits_layer):
        representation = network.run_layer(layer, below)
        for output in outputs_of_blocks(NETWORKS.build(table)):
            found, beside = network.run_block(layer, below, output)
            assert torch.allclose(found, representation, atol=1e-5)
            assert beside.shape == representation.shape
            assert output != "representation" or torch.equal(beside, representation)
        below = representation


def test_a_network_without_running_statistics_says_so_and_cannot_be_searched() -> None:
    data = made_up_data()
    for batchnorm in ("running", "batch"):
        table = {"name": "convnet", **EXAMPLES["convnet"], "batchnorm": batchnorm}
        network = build_network(table, data, seed=0, purpose="learned")
        norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert {norm.track_running_stats for norm in norms} == {batchnorm == "running"}
        assert depends_on_batch(NETWORKS.build(table)) is (batchnorm == "batch")
    with pytest.raises(ConfigError, match="without running statistics"):
        evaluation_network(network)


def calibrated(name: str, data: Data) -> SearchableNetwork:
    """Return the calibrated example network of member `name`."""
    network = build_network({"name": name, **EXAMPLES[name]}, data, seed=0, purpose="searched")
    calibrate(network, data.train.images)
    return network


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
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in searched.modules())
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
