"""The row of `search_speed` for EvoTorch's functional operators, batched over images."""

from __future__ import annotations

import torch
from evotorch.operators import functional as operators

from benchmarks.search_speed_loops import starting_fitness
from benchmarks.search_speed_problem import POPULATION, STRENGTH, Problem
from searcher.search import evaluate


@torch.no_grad()
def evotorch(problem: Problem, batch: int) -> int:
    """Search by tournaments, one-point crossover, Gaussian mutation and truncation; the evaluation is the searcher's own.

    EvoTorch has no functional mutation, so it is one `randn` and one addition. Nothing is smoothed and nothing normalised: less work
    than the method asks for.
    """
    evaluations = 0
    for starts_BPCHW, labels_B in problem.batches(batch):
        fitness = starting_fitness(problem.searched, starts_BPCHW, labels_B)
        population = starts_BPCHW.flatten(2)
        evaluations += fitness.numel()
        for _ in range(problem.generations):
            children = operators.one_point_cross_over(
                population, fitness, tournament_size=4, num_children=POPULATION, objective_sense="max"
            )
            children = children + STRENGTH * torch.randn_like(children)
            children_fitness = evaluate(problem.searched, 0, children.view_as(starts_BPCHW), labels_B)
            evaluations += children_fitness.numel()
            merged, merged_fitness = operators.combine((population, fitness), (children, children_fitness), objective_sense="max")
            population, fitness = operators.take_best(merged, merged_fitness, POPULATION, objective_sense="max")
    return evaluations
