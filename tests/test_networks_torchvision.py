"""torchvision classifiers cut into stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from repsearch.errors import ConfigError
from repsearch.families import NETWORKS
from repsearch.networks import SearchableNetwork, build_network, calibrate
from repsearch.networks.cutting import valid_stages
from repsearch.networks.standardising import Standardise
from repsearch.networks.torchvision import Torchvision
from tests.networks import made_up_data

MODELS = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "vgg11_bn": ["features.7", "features"],
    "mobilenet_v3_small": ["features.3", "features.6", "avgpool"],
    "efficientnet_b0": ["features.2", "features.4", "features"],
    "densenet121": ["features.denseblock1", "features.transition2", "features"],
    "convnext_tiny": ["features.1", "features.5"],
    "regnet_y_400mf": ["stem", "trunk_output.block2", "trunk_output"],
    "shufflenet_v2_x0_5": ["stage2", "stage3"],
    "squeezenet1_1": ["features.4", "features"],
}


def built(model: str, stages: list[str], shape: tuple[int, int, int] = (3, 32, 32)) -> SearchableNetwork:
    data = made_up_data(shape, train=8)
    network = build_network({"name": "torchvision", "model": model, "stages": stages}, data, seed=0, purpose="searched")
    calibrate(network, data.train.images)
    return network


def as_torchvision_has_it(network: SearchableNetwork, model: str) -> nn.Module:
    """Return torchvision's own `model` with the parameters and buffers of `network`."""
    reference: nn.Module = torchvision.models.get_model(model, weights=None, num_classes=network.classes).eval()
    names = reference.state_dict()
    found = {name.partition("part.")[2]: value for name, value in network.state_dict().items() if "part." in name}
    assert found.keys() == names.keys()
    reference.load_state_dict(found)
    return reference


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS)
def test_cutting_keeps_the_models_function_and_calibration_does_too(model: str) -> None:
    network = built(model, MODELS[model], (3, 64, 64))
    images = made_up_data((3, 64, 64), train=8).train.images
    expected = as_torchvision_has_it(network, model)(network.prepare(images))
    representations = network.representations(images)
    scale = float(expected.std()) + 1e-3
    assert torch.allclose(representations[-1], expected, rtol=1e-3, atol=1e-3 * scale)
    for layer, representation in enumerate(representations):
        assert torch.equal(network.run_from(layer, representation), representations[-1])


def test_grey_images_are_repeated_over_the_colour_channels() -> None:
    network = built("resnet18", ["layer2"], (1, 16, 16))
    images = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        expected = as_torchvision_has_it(network, "resnet18")(network.prepare(images).repeat(1, 3, 1, 1))
        assert torch.allclose(network(images), expected, rtol=1e-4, atol=1e-4)


def test_dropout_is_left_out() -> None:
    network = built("efficientnet_b0", ["features.2"])
    assert not any(isinstance(module, (nn.Dropout, torchvision.ops.StochasticDepth)) for module in network.modules())


def test_a_stage_that_is_not_there_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"no module 'layr1'; did you mean 'layer1'.*valid: conv1, bn1, relu, maxpool, layer1,"):
        Torchvision(stages=["layr1"]).check((3, 32, 32))


@pytest.mark.parametrize(
    ("model", "stages", "message"),
    [
        ("resnet18", ["layer1.0.conv1"], r"cannot be cut at 'layer1\.0\.conv1'.*valid: conv1"),
        ("densenet121", ["features.denseblock1.denselayer2"], r"cannot be cut at 'features\.denseblock1\.denselayer2'"),
        ("resnet18", ["layer2", "layer1"], "'layer1' is not after the stages named before it"),
        ("resnet18", ["layer1", "layer1.1"], r"'layer1\.1' is not after the stages named before it"),
        ("resnet18", ["fc"], "'fc' is the model's end and leaves nothing for the head"),
        ("resnet19", ["layer1"], "no classifier 'resnet19'; did you mean 'resnet18'.*known: alexnet"),
        ("vit_b_16", ["encoder"], "'vit_b_16' cannot be searched: its representations are sequences of tokens; take a resnet"),
        ("swin_t", ["features"], "its feature maps have the channels last"),
        ("googlenet", ["conv1"], "it has auxiliary classifiers"),
    ],
)
def test_models_and_stages_that_cannot_be_cut_are_refused(model: str, stages: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Torchvision(model=model, stages=stages).check((3, 32, 32))


@pytest.mark.parametrize(("model", "stages", "size", "least"), [("vgg11", ["features"], 8, 32), ("alexnet", ["features"], 28, 63)])
def test_images_too_small_for_a_model_are_refused_with_the_size_that_fits(model: str, stages: list[str], size: int, least: int) -> None:
    spec = Torchvision(model=model, stages=stages)
    with pytest.raises(ConfigError, match=f"{model}' does not take {size}x{size} images, it needs {least} pixels or more a side"):
        spec.check((1, size, size))
    spec.check((1, least, least))


def test_images_of_other_channels_and_stages_named_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match="the dataset's have 4 channels"):
        Torchvision().check((4, 32, 32))
    with pytest.raises(ConfigError, match="stages names 'layer1' twice"):
        NETWORKS.build({"name": "torchvision", "stages": ["layer1", "layer1"]}, at="network")


@pytest.mark.parametrize("model", MODELS)
def test_every_stage_listed_as_valid_is_valid(model: str) -> None:
    names = valid_stages(torchvision.models.get_model(model, weights=None))
    assert set(names) >= set(MODELS[model])
    for name in names[:: max(1, len(names) // 8)]:
        Torchvision(model=model, stages=[name]).check((3, 64, 64))


def test_a_standardised_output_is_undone_by_what_reads_it_whatever_the_statistics() -> None:
    scale = Standardise(momentum=1.0).train()
    output = 3 + 2 * torch.randn(64, 4, 5, 5)
    representation = scale(output)
    assert abs(float(representation.mean())) < 1e-4
    assert abs(float(representation.flatten(1).var(dim=1, correction=0).mean()) - 1) < 1e-3
    assert torch.allclose(scale.undo(representation), output, atol=1e-5)
    before = scale.mean.clone()
    scale.eval()(output + 7)
    assert torch.equal(scale.mean, before)


def test_statistics_follow_the_outputs_while_a_network_learns_and_stay_with_it() -> None:
    network = built("resnet18", ["layer1", "layer2"])
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    first: Any = network.blocks[0]
    before = first.after.mean.clone()
    network.train()(images).sum().backward()
    assert not torch.equal(first.after.mean, before)
    second: Any = network.blocks[1]
    assert second.before is first.after
    assert torch.equal(network.state_dict()["blocks.1.before.mean"], network.state_dict()["blocks.0.after.mean"])
