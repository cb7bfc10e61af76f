"""What running a part of a network allocates, counted tensor by tensor.

Every tensor that an operation makes is noted with its bytes, and struck off when it is freed, so the count depends on shapes alone and
is the same on every machine. What libraries allocate inside an operation is not seen.

Shapes: B examples; X a representation's own shape.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repsearch.errors import ConfigError
from repsearch.networks.base import SearchableNetwork, layer_name

_PROBE = 2
"""Examples that a part is run on: one alone may take other paths."""


def check_runs_alone(network: SearchableNetwork) -> None:
    """Raise `ConfigError` if in evaluation mode an example's result depends on those beside it."""
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise ConfigError(
                f"network: {name} is a BatchNorm without running statistics, so an example's result depends on the others beside it and "
                "cannot be searched; keep track_running_stats = True"
            )


def bytes_above(network: SearchableNetwork, layer: int, *, gradient: bool) -> int:
    """Return the most bytes per candidate that fitness at `layer` takes beside the candidates, with its gradient if `gradient`.

    Raises `ConfigError` naming the layer if the part above it does not run in evaluation mode.
    """
    candidates_BX = torch.ones(_PROBE, *network.layer_shape(layer))

    def run() -> None:
        leaf = candidates_BX.requires_grad_(gradient)
        logits = network.run_from(layer, leaf)
        if logits.shape != (_PROBE, network.classes):
            raise ValueError(f"it gives {tuple(logits.shape)} for {_PROBE} examples, not ({_PROBE}, {network.classes})")
        if gradient:
            torch.autograd.grad(logits.logsumexp(dim=1).sum(), leaf)

    where = f"the part above {layer_name(layer, network.logits_layer)}"
    return _probed(network, run, where, gradient=gradient, inputs=[candidates_BX])


def bytes_below(network: SearchableNetwork, below: int, layer: int, input_shape: tuple[int, ...]) -> int:
    """Return the most bytes per example that computing `layer` takes from the representation of `below`, or from images where it is -1."""
    shape = input_shape if below < 0 else network.layer_shape(below)

    def run() -> None:
        values = torch.ones(_PROBE, *shape)
        values = network.stem(values) if below < 0 else values
        for number in range(below + 1, layer + 1):
            values = network.run_layer(number, values)

    return _probed(network, run, f"the part below {layer_name(layer, network.logits_layer)}")


def bytes_held(network: SearchableNetwork) -> int:
    """Return the bytes of parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in [*network.parameters(), *network.buffers()])


def _probed(
    network: SearchableNetwork, run: Callable[[], None], where: str, *, gradient: bool = False, inputs: Sequence[Tensor] = ()
) -> int:
    """Return the bytes per example that `run` allocates beside `inputs`."""
    live = _Live(there=[*network.parameters(), *network.buffers(), *inputs])
    try:
        with torch.set_grad_enabled(gradient), live:
            run()
    except Exception as error:  # whatever a network's own code raises
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"network: {where} does not run in evaluation mode ({type(error).__name__}: {reason[0] if reason else 'no message'}); "
            "search other layers (search.layers), or correct the network"
        ) from error
    return -(-live.most // _PROBE)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors made in this context that are still there, and the most there were; views of `there` are not counted."""

    def __init__(self, there: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._there = {value.untyped_storage()._cdata for value in there}
        self.most = self._bytes = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._note(value)
        self.most = max(self.most, self._bytes)
        return made

    def _note(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self._there:
            return
        if place not in self._users:
            self._users[place] = 0
            self._bytes += size
        self._users[place] += 1
        weakref.finalize(value, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            del self._users[place]
            self._bytes -= size
