"""Cut a model into a sequence of parts at named modules.

The model's forward pass is traced (torch.fx) into a list of operations, in which a module counts as one operation unless a cut lies
inside it: the inside of modules stays the model's own code. A cut after operation p is clean if all that later operations read of what
came before is the result of p. Positions count operations; -1 is the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from repsearch.errors import ConfigError
from repsearch.families import nearest


def cut(model: nn.Module, stages: Sequence[str], *, at: str) -> tuple[fx.Graph, list[int]]:
    """Return the traced model and the positions of the cuts: before the first of `stages`, and after each of them.

    Raises `ConfigError`, with `at` as its place and the valid names, for a stage that is not there or where no cut is clean.
    """
    modules = dict(model.named_modules())
    for stage in stages:
        if stage not in modules or not stage:
            names = valid_stages(model)
            raise ConfigError(f"{at}: the model has no module {stage!r}{nearest(stage, names)}; valid: {', '.join(names)}")
    graph = _trace(model, lambda path: any(stage.startswith(f"{path}.") for stage in stages), at)
    spans = [_span(graph, stage) for stage in stages]
    cuts: list[int] = []
    for stage, span in zip(stages, spans, strict=True):
        if span is not None and span[1] == len(_operations(graph)) - 1:
            raise ConfigError(f"{at}: {stage!r} is the model's end and leaves nothing for the head; valid: {_listed(model)}")
        if span is None or not _clean(graph, span[1]) or (not cuts and not _clean(graph, span[0] - 1)):
            raise ConfigError(
                f"{at}: the model cannot be cut at {stage!r}: the rest reads more than its output, or it is not one step of the model; "
                f"valid: {_listed(model)}"
            )
        if cuts and span[1] <= cuts[-1]:
            raise ConfigError(f"{at}: {stage!r} is not after the stages named before it; list stages in the model's order")
        cuts += [span[1]] if cuts else [span[0] - 1, span[1]]
    return graph, cuts


def parts_of(model: nn.Module, graph_and_cuts: tuple[fx.Graph, list[int]]) -> list[fx.GraphModule]:
    """Return the parts between the cuts, which share `model`'s modules and parameters; in sequence they compute what `model` does."""
    graph, cuts = graph_and_cuts
    operations = _operations(graph)
    bounds = [-1, *cuts, len(operations) - 1]
    inputs = [_placeholder(graph) if bound < 0 else operations[bound] for bound in bounds]
    return [_part(model, operations[first + 1 : last + 1], read) for first, last, read in zip(bounds, bounds[1:], inputs, strict=False)]


def valid_stages(model: nn.Module) -> list[str]:
    """Return the names of modules after which `model` can be cut, in its order: top-level ones, and those inside of containers."""
    graph = _trace(model, lambda path: "." not in path and isinstance(model.get_submodule(path), nn.Sequential), "network.model")
    names = list(dict.fromkeys(name for node in _operations(graph) for name in _paths(node)))
    spans = {name: _span(graph, name) for name in names}
    return [name for name, span in spans.items() if span is not None and _clean(graph, span[1])]


class _Tracer(fx.Tracer):
    def __init__(self, enter: Callable[[str], bool]) -> None:
        super().__init__()
        self._enter = enter

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self._enter(module_qualified_name)


def _trace(model: nn.Module, enter: Callable[[str], bool], at: str) -> fx.Graph:
    """Return the operations of `model`, those of the modules whose paths `enter` accepts one by one."""
    try:
        return _Tracer(enter).trace(model)
    except Exception as error:  # whatever the model's own code does with a value that is not there
        raise ConfigError(f"{at}: the model's forward pass cannot be followed ({error}); name modules further out") from error


def _operations(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op not in ("placeholder", "output")]


def _placeholder(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(node for node in graph.nodes if node.op == "placeholder")
    return node


def _paths(node: fx.Node) -> list[str]:
    """Return the paths of the modules that `node` is part of, outermost first."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack", {})
    return [entry[0] for entry in stack.values()]


def _span(graph: fx.Graph, name: str) -> tuple[int, int] | None:
    """Return the positions of the first and last operation of module `name`; None if it has none, or others lie between."""
    inside = [position for position, node in enumerate(_operations(graph)) if name in _paths(node)]
    if not inside or inside[-1] - inside[0] + 1 != len(inside):
        return None
    return inside[0], inside[-1]


def _clean(graph: fx.Graph, position: int) -> bool:
    """Return whether later operations, of which there is at least one, read nothing but the result of the one at `position`."""
    operations = _operations(graph)
    later = operations[position + 1 :]
    read = {node for operation in [*later, *graph.find_nodes(op="output")] for node in operation.all_input_nodes} - set(later)
    return bool(later) and read == {operations[position] if position >= 0 else _placeholder(graph)}


def _part(model: nn.Module, operations: Sequence[fx.Node], read: fx.Node) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {read: graph.placeholder("below")}
    for node in operations:
        copies[node] = graph.node_copy(node, lambda old: copies[old])
    graph.output(copies[operations[-1]] if operations else copies[read])
    return fx.GraphModule(model, graph)


def _listed(model: nn.Module) -> str:
    return ", ".join(valid_stages(model))
