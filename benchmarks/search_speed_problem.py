"""The problem that every row of `search_speed` searches: block 0 of an untrained, calibrated convnet on made-up 28x28 grey images.

Shapes: B images; P candidates; C x 13 x 13 a representation of block 0; K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from repsearch.datasets.base import Data, Split
from repsearch.families import STRATEGIES
from repsearch.networks import SearchableNetwork, build_network, calibrate
from searcher.evaluation_network import evaluation_network
from searcher.plan import Group, SearchPlan, groups_of
from searcher.starting import first_candidates

CLASSES = 10
STRENGTH, BOOST, BLUR = 0.3, 5.0, 5
PARENTS, EXPLORERS, REFINERS = 4, 8, 12
POPULATION = PARENTS + EXPLORERS + REFINERS


@dataclass(frozen=True)
class Problem:
    """`network` as it is trained, `searched` as it is evaluated, the starting populations (B, P, C, 13, 13), labels (B,)."""

    data: Data
    network: SearchableNetwork
    searched: SearchableNetwork
    plan: SearchPlan
    starts_BPCHW: Tensor
    labels_B: Tensor
    generations: int

    @property
    def images(self) -> int:
        """B."""
        return len(self.labels_B)

    @property
    def channels(self) -> int:
        """C."""
        return self.starts_BPCHW.shape[2]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Return starting populations and labels of `size` images at a time."""
        return zip(self.starts_BPCHW.split(size), self.labels_B.split(size), strict=True)

    def groups(self) -> Iterator[Group]:
        """Return the images in the searcher's tiles."""
        return groups_of(self.plan, self.data.train, first=0, count=self.images, device=torch.device("cpu"))


def made_up_data(images: int) -> Data:
    """Return smooth patterns per class plus noise, as uint8 images of 28x28 grey pixels."""
    rng = torch.Generator().manual_seed(0)
    patterns = torch.nn.functional.interpolate(torch.randn(CLASSES, 1, 5, 5, generator=rng), (28, 28), mode="bilinear")
    labels = torch.arange(images) % CLASSES
    pixels = (100 + 60 * patterns[labels] + 25 * torch.randn(images, 1, 28, 28, generator=rng)).clamp(0, 255).to(torch.uint8)
    train, few = Split(pixels, labels), Split(pixels[:CLASSES], labels[:CLASSES])
    scaled = pixels.float() / 255
    names = tuple(str(number) for number in range(CLASSES))
    return Data("made_up", names, train, few, few, scaled.mean(dim=(0, 2, 3)), scaled.std(dim=(0, 2, 3)), "made-up")


def made_up_network(data: Data, channels: int, convolutions: int = 2) -> SearchableNetwork:
    """Return the untrained, calibrated network: three blocks of `convolutions`, `channels` wide."""
    table = {"name": "convnet", "width": channels, "blocks": 3, "convolutions": convolutions}
    network = build_network(table, data, seed=0, purpose="searched")
    calibrate(network, data.train.images[:1000])
    return network


def make_plan(generations: int, tile: int, *, layers: int = 1, population: int = POPULATION) -> SearchPlan:
    """Return a plan of evolution on the first `layers` blocks."""
    refiners = population - PARENTS - EXPLORERS
    table = {"name": "evolution", "population": population, "refiners": refiners, "generations": [generations] * layers}
    schedule = {"strength": [STRENGTH] * layers, "boost": [BOOST] * layers, "blur_passes": [BLUR, 1, 1][:layers]}
    strategy = STRATEGIES.build({**table, **schedule})
    return SearchPlan(strategy=strategy, layers=list(range(layers)), seed=0, round=0, input_noise=0.1, from_network=False, micro_batch=tile)


@torch.no_grad()
def make_problem(*, channels: int, images: int, generations: int, tile: int) -> Problem:
    """Return the problem; everything in it is a function of the arguments."""
    data = made_up_data(images)
    network = made_up_network(data, channels)
    searched = evaluation_network(network)
    plan = make_plan(generations, tile)
    index_B = torch.arange(images)
    parts = [
        first_candidates(plan, searched, part, index) for part, index in zip(data.train.images.split(64), index_B.split(64), strict=True)
    ]
    return Problem(data, network, searched, plan, torch.cat(parts), data.train.labels, generations)
