"""Search strategies: how candidates of a layer are proposed and selected. Members: see `repsearch.families.STRATEGIES`."""

from searcher.strategies.base import Best, SearchLayer, SearchStrategy, Traits

__all__ = ["Best", "SearchLayer", "SearchStrategy", "Traits"]
