"""The training step in bfloat16 and compiled: the same function, to the precision asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.batches import Batch, TrainingSet
from learner.checkpoints import NoCheckpoints
from learner.fit import fit
from learner.forward import loss_function
from learner.objectives.cross_entropy import CrossEntropy
from learner.objectives.regression import Regression
from learner.optimisers.adamw import AdamW
from repsearch.config import LearnConfig
from repsearch.networks import SearchableNetwork, to_arrays
from tests.learner_support import Recorder, made_up_targets, network_for, plan_for, tiny_data

OBJECTIVES = [Regression(), Regression(match="raw", isolate=True), CrossEntropy()]


def batch_for(network: SearchableNetwork) -> Batch:
    data = tiny_data()
    targets = {name: torch.from_numpy(values) for name, values in made_up_targets(network, data).items()}
    return Batch(data.train.images, data.train.labels, targets)


def step(objective: Any, **learn: Any) -> tuple[float, dict[str, torch.Tensor], set[torch.dtype]]:
    """Return loss, gradients, and the types that convolutions put out, of one training step."""
    network, seen = network_for(tiny_data()).train(), set()
    if not learn.get("compile"):
        first: Any = network.blocks[0]
        first.groups[0].conv1.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    loss = loss_function(network, objective, LearnConfig(**learn))(batch_for(network))
    torch.autograd.backward(loss.total)
    return loss.total.item(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}, seen


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bfloat16_is_the_same_loss_less_precisely_with_float32_gradients(objective: Any) -> None:
    full, gradients, seen_full = step(objective)
    reduced, rough, seen = step(objective, precision="bfloat16")
    assert (seen_full, seen) == ({torch.float32}, {torch.bfloat16})
    assert reduced == pytest.approx(full, rel=0.02)
    assert reduced != full
    assert {gradient.dtype for gradient in rough.values()} == {torch.float32}
    for name, gradient in gradients.items():
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), rough[name].flatten(), dim=0) > 0.97, name


def test_a_fit_in_bfloat16_learns_and_is_evaluated_in_float32() -> None:
    data, ends = tiny_data(), []
    for precision in ("float32", "bfloat16"):
        network = network_for(data)
        targets = {name: torch.from_numpy(values) for name, values in made_up_targets(network, data).items()}
        plan = plan_for(epochs=2, objective=Regression(), optimiser=AdamW(lr=0.02), precision=precision)
        state = fit(network, TrainingSet.on("cpu", data.train, targets), data.validation, plan, NoCheckpoints(), Recorder())
        ends.append(state.history[-1]["loss_block0"])
        assert ends[-1] < 0.99 * state.history[0]["loss_block0"]
    assert ends[1] == pytest.approx(ends[0], rel=0.02)
    assert {str(values.dtype) for name, values in to_arrays(network).items() if "tracked" not in name} == {"float32"}
    assert network(data.test.images).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_is_the_same_loss() -> None:
    objective = OBJECTIVES[1]
    plain, gradients, _ = step(objective)
    compiled, others, _ = step(objective, compile=True)
    assert compiled == pytest.approx(plain, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], rtol=1e-3, atol=1e-5), name
