"""Small made-up data and networks for tests."""

from __future__ import annotations

import torch

from repsearch.datasets.base import Data, Split
from repsearch.networks import SearchableNetwork, build_network, calibrate


def made_up_data(shape: tuple[int, int, int] = (1, 8, 8), *, train: int = 96, classes: int = 4, seed: int = 0) -> Data:
    """Return images whose classes differ in a smooth pattern, plus noise; uint8."""
    rng = torch.Generator().manual_seed(seed)
    patterns = torch.nn.functional.interpolate(torch.randn(classes, shape[0], 3, 3, generator=rng), shape[1:], mode="bilinear")

    def split(count: int) -> Split:
        labels = torch.arange(count) % classes
        images = 128 + 50 * patterns[labels] + 30 * torch.randn(count, *shape, generator=rng)
        return Split(images.clamp(0, 255).to(torch.uint8), labels)

    parts = split(train), split(32), split(32)
    scaled = parts[0].images.float() / 255
    names = tuple(f"class {number}" for number in range(classes))
    return Data("made_up", names, *parts, scaled.mean(dim=(0, 2, 3)), scaled.std(dim=(0, 2, 3)), f"digest-{seed}")


def made_up_network(data: Data, *, width: int = 16, blocks: int = 2, convolutions: int = 2, seed: int = 0) -> SearchableNetwork:
    """Return an untrained, calibrated convnet for `data`."""
    table = {"name": "convnet", "width": width, "blocks": blocks, "convolutions": convolutions}
    network = build_network(table, data, seed=seed, purpose="searched")
    calibrate(network, data.train.images)
    return network


def perturb(network: SearchableNetwork, seed: int = 1) -> SearchableNetwork:
    """Return `network` with every parameter moved, so that no convolution is an identity, as after learning."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=rng)
    return network
