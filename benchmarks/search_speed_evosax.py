"""The row of `search_speed` for evosax: SimpleGA, vmapped over images, all generations in one jitted scan.

The fitness is the part above block 0 written in JAX without the identity convolutions, as the searcher's evaluation network leaves them
out: 2x2 maximum, scale and shift, GELU, scale and shift, GELU, normalisation; twice; then the head. `check` compares it with PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from evosax.algorithms import SimpleGA
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.search_speed_problem import POPULATION, STRENGTH, Problem
from searcher.search import evaluate

Loss = Callable[[Any, Any], Any]


def make_evosax(problem: Problem, batch: int) -> Callable[[Problem], int]:
    """Return the row for this problem, compiled for batches of `batch` images."""
    loss = make_loss(problem)
    check(problem, loss)
    algorithm = SimpleGA(
        population_size=POPULATION, solution=jnp.zeros(problem.starts_BPCHW.shape[2:]), std_schedule=optax.constant_schedule(STRENGTH)
    )
    params = algorithm.default_params

    def search_image(key: Any, starts_PCHW: Any, label: Any) -> Any:
        state = algorithm.init(key, starts_PCHW, loss(starts_PCHW, label), params)

        def generation(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
            key, state = carry
            key, ask_key, tell_key = jax.random.split(key, 3)
            candidates, state = algorithm.ask(ask_key, state, params)
            state, _ = algorithm.tell(tell_key, candidates, loss(candidates, label), state, params)
            return (key, state), None

        (_, state), _ = jax.lax.scan(generation, (key, state), None, length=problem.generations)
        return state.best_solution, state.best_fitness

    search = jax.jit(jax.vmap(search_image))
    batches = [(jnp.asarray(starts.numpy()), jnp.asarray(labels.numpy())) for starts, labels in problem.batches(batch)]

    def evosax(problem: Problem) -> int:
        evaluations = 0
        for number, (starts, labels) in enumerate(batches):
            keys = jax.random.split(jax.random.key(number), len(labels))
            jax.block_until_ready(search(keys, starts, labels))
            evaluations += len(labels) * POPULATION * (problem.generations + 1)
        return evaluations

    return evosax


def make_loss(problem: Problem) -> Loss:
    """Return the cross-entropy (P,) of candidates (P, C, 13, 13) of one image, as a JAX function."""
    affine = [[_affine(norm) for norm in block.modules() if isinstance(norm, _BatchNorm)] for block in problem.network.blocks[1:]]
    linear = problem.network.head.linear
    weight, bias = jnp.asarray(linear.weight.detach().numpy()), jnp.asarray(linear.bias.detach().numpy())

    def loss(candidates_PCHW: Any, label: Any) -> Any:
        maps = candidates_PCHW
        for norms in affine:
            height, width = (side // 2 * 2 for side in maps.shape[2:])
            rows = jnp.maximum(maps[:, :, 0:height:2], maps[:, :, 1:height:2])
            maps = jnp.maximum(rows[..., 0:width:2], rows[..., 1:width:2])
            for scale, shift in norms:
                maps = jax.nn.gelu(maps * scale + shift, approximate=False)
            mean = maps.mean(axis=(1, 2, 3), keepdims=True)
            maps = (maps - mean) * jax.lax.rsqrt(maps.var(axis=(1, 2, 3), keepdims=True) + 1e-5)
        logits = maps.reshape(len(maps), -1) @ weight.T + bias
        return -jax.nn.log_softmax(logits)[:, label]

    return loss


def check(problem: Problem, loss: Loss) -> None:
    """Raise `RuntimeError` unless the JAX part above block 0 gives what the searcher's gives."""
    starts, labels = problem.starts_BPCHW[:4], problem.labels_B[:4]
    with torch.no_grad():
        expected = -evaluate(problem.searched, 0, starts, labels).numpy()
    found = jax.vmap(loss)(jnp.asarray(starts.numpy()), jnp.asarray(labels.numpy()))
    if not np.allclose(found, expected, atol=1e-3):
        raise RuntimeError(f"the JAX network differs from the searched one by {np.abs(found - expected).max()}")


def _affine(norm: _BatchNorm) -> tuple[Any, Any]:
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return tuple(jnp.asarray(value.detach().numpy()).reshape(1, -1, 1, 1) for value in (scale, shift))
