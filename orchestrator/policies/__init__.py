"""Round policies: which network each round searches and from which it learns. Members: see `repsearch.families.POLICIES`."""

from orchestrator.policies.base import RoundPlan, RoundPolicy, StreamPlan, closing_of, reason_of, variants_of
from orchestrator.policies.composing import make_policy

__all__ = ["RoundPlan", "RoundPolicy", "StreamPlan", "closing_of", "make_policy", "reason_of", "variants_of"]
