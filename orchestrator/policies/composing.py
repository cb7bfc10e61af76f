"""The policy of a run: the member of the family that `rounds.policy` names, and around it what else `[rounds]` asks for.

 Budget( Plateau( Scheduled( member )))     each only where its fields are set
A schedule changes plans, a plateau widens what the schedule left, and a budget ends all of it.
"""

from __future__ import annotations

from orchestrator.policies.base import RoundPolicy
from orchestrator.policies.budget import Budget
from orchestrator.policies.plateau import Plateau
from orchestrator.policies.schedule import Scheduled
from repsearch.config import RunConfig
from repsearch.families import POLICIES


def make_policy(config: RunConfig) -> RoundPolicy:
    """Return the round policy of `config`."""
    rounds = config.rounds
    policy: RoundPolicy = POLICIES.build(rounds.policy, at="rounds.policy")
    if rounds.schedule:
        policy = Scheduled(inner=policy)
    if rounds.plateau is not None:
        policy = Plateau(inner=policy)
    if rounds.max_evaluations is not None or rounds.max_seconds is not None:
        policy = Budget(inner=policy)
    return policy
