"""Fitness of candidates: the negative cross-entropy of the logits that the part above the searched layer gives.

Shapes: T examples; P candidates; X a representation's own shape.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from repsearch.errors import NumericalError
from repsearch.networks.base import SearchableNetwork

Precision = Literal["float32", "bfloat16"]


def logits_of(network: SearchableNetwork, layer: int, candidates_NX: Tensor, precision: Precision) -> Tensor:
    """Return the logits (N, K) of candidates at `layer`, float32; `bfloat16`: computed under torch's autocast."""
    with torch.autocast(candidates_NX.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return network.run_from(layer, candidates_NX).float()


def evaluate(network: SearchableNetwork, layer: int, candidates_TPX: Tensor, labels_T: Tensor, precision: Precision = "float32") -> Tensor:
    """Return the fitness (T, P) of candidates at `layer`; equals log p(correct)."""
    T, P = candidates_TPX.shape[:2]
    logits = logits_of(network, layer, candidates_TPX.flatten(0, 1), precision)
    return -F.cross_entropy(logits, labels_T.repeat_interleave(P), reduction="none").view(T, P)


def evaluate_with_gradient(
    network: SearchableNetwork, layer: int, candidates_TPX: Tensor, labels_T: Tensor, precision: Precision = "float32"
) -> tuple[Tensor, Tensor]:
    """Return the fitness (T, P) and its gradient with respect to each candidate (T, P, ...)."""
    with torch.enable_grad():
        leaf = candidates_TPX.detach().requires_grad_()
        fitness_TP = evaluate(network, layer, leaf, labels_T, precision)
        (gradient,) = torch.autograd.grad(fitness_TP.sum(), leaf)
    return fitness_TP.detach(), gradient


def require_finite(fitness_TP: Tensor, index_T: Tensor, counts_T: Tensor, layer: str, generation: int) -> None:
    """Raise `NumericalError` naming image, layer and generation of a fitness that is not finite, among the rows where `counts_T`."""
    if not bool(torch.isfinite(fitness_TP).all()):
        wrong_T = (~torch.isfinite(fitness_TP)).any(dim=1) & counts_T
        if bool(wrong_T.any()):
            raise NumericalError(
                f"fitness is not finite: training image {int(index_T[wrong_T][0])}, {layer}, generation {generation}; "
                "the network's parameters or its BatchNorm statistics have overflowed: lower learn.optimiser.lr, "
                "or search from an earlier round"
            )
