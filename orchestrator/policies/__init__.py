"""Round policies: which network each round searches and from which it learns. Members: see `repsearch.families.POLICIES`."""

from orchestrator.policies.base import RoundPlan, RoundPolicy

__all__ = ["RoundPlan", "RoundPolicy"]
