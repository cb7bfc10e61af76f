"""Search strategies: how candidates of a layer are proposed and selected. Members: see `repsearch.families.STRATEGIES`."""

from searcher.strategies.base import SearchLayer, SearchStrategy

__all__ = ["SearchLayer", "SearchStrategy"]
