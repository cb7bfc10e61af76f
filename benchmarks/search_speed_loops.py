"""The rows of `search_speed` that need nothing but PyTorch: repsearch, the plain loop, and the floor.

A row is a function that searches the problem once and returns the number of candidates it evaluated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.search_speed_problem import BLUR, BOOST, EXPLORERS, PARENTS, POPULATION, REFINERS, STRENGTH, Problem
from repsearch.networks import SearchableNetwork
from searcher.layer_search import search_layer
from searcher.search import evaluate


@torch.no_grad()
def repsearch(problem: Problem) -> int:
    """Search as the searcher does: `search_layer`, tile after tile, on ready starting populations."""
    evaluations = 0
    starts = problem.starts_BPCHW.split(problem.plan.micro_batch)
    for group, starts_TPCHW in zip(problem.groups(), starts, strict=True):
        evaluations += search_layer(problem.plan, problem.searched, 0, starts_TPCHW[None], group).evaluations
    return evaluations


@torch.no_grad()
def floor(problem: Problem) -> int:
    """Evaluate ready candidates, nothing else: the part above block 0 in the searcher's evaluation network and tiles."""
    evaluations = 0
    for starts_TPCHW, _ in problem.batches(problem.plan.micro_batch):
        children = starts_TPCHW[:, PARENTS:].flatten(0, 1)
        for generation in range(problem.generations + 1):
            candidates = starts_TPCHW.flatten(0, 1) if generation == 0 else children
            problem.searched.run_from(0, candidates)
            evaluations += len(candidates)
    return evaluations


@torch.no_grad()
def plain_loop(problem: Problem, batch: int) -> int:
    """Search as the method's text reads in PyTorch, with a generator's own noise and the network as it stands.

    Per generation and image: pairs of pool members by `randint`, their mean; noise by `randn`, times alpha and the mean of the members'
    `torch.std` over positions, five passes of `avg_pool2d`; `layer_norm` over (C, H, W); then the whole network above block 0 in evaluation
    mode, convolutions that are identities included; `topk` of the population.
    """
    evaluations = 0
    rng = torch.Generator().manual_seed(0)
    for starts_BPCHW, labels_B in problem.batches(batch):
        population = starts_BPCHW
        fitness = evaluate(problem.network, 0, population, labels_B)
        evaluations += fitness.numel()
        for _ in range(problem.generations):
            best = fitness.topk(PARENTS, dim=1).indices
            parents = _rows(population, best)
            explorers = _plain_children(parents, EXPLORERS, STRENGTH * BOOST, rng)
            refiners = _plain_children(torch.cat([parents, explorers], dim=1), REFINERS, STRENGTH, rng)
            children = torch.cat([explorers, refiners], dim=1)
            children_fitness = evaluate(problem.network, 0, children, labels_B)
            evaluations += children_fitness.numel()
            population = torch.cat([parents, children], dim=1)
            fitness = torch.cat([fitness.gather(1, best), children_fitness], dim=1)
    return evaluations


def _plain_children(pool_BQCHW: Tensor, count: int, strength: float, rng: torch.Generator) -> Tensor:
    B, Q, C, H, W = pool_BQCHW.shape
    one, two = (_rows(pool_BQCHW, torch.randint(0, Q, (B, count), generator=rng)) for _ in range(2))
    deviation = (one.std(dim=(3, 4), keepdim=True) + two.std(dim=(3, 4), keepdim=True)) / 2
    noise = torch.randn(one.shape, generator=rng) * (strength * deviation)
    noise = noise.flatten(0, 1)
    for _ in range(BLUR):
        noise = F.avg_pool2d(noise, 3, stride=1, padding=1, count_include_pad=False)
    children = (one + two) / 2 + noise.view_as(one)
    return F.layer_norm(children, (C, H, W))


def _rows(population_BPX: Tensor, index_BK: Tensor) -> Tensor:
    return population_BPX[torch.arange(len(index_BK))[:, None], index_BK]


def starting_fitness(network: SearchableNetwork, starts_BPCHW: Tensor, labels_B: Tensor) -> Tensor:
    """Return the fitness (B, P) of the starting populations."""
    assert starts_BPCHW.shape[1] == POPULATION
    return evaluate(network, 0, starts_BPCHW, labels_B)
