"""How the searcher and the learner serve jobs: one gRPC process that never computes, and one compute process that knows no gRPC.

    client --gRPC--> servicer -> table (jobs, events, terms, queue)          daemon process: no torch
                                   |
                              supervisor --socket pair--> compute -> run_job  compute process: no grpc

`jobs` is what a program implements; `table` is the state of all jobs; `supervisor` keeps the compute process alive and feeds it;
`servicer` translates to and from gRPC and turns every refusal into a status code; `daemon` wires them up and handles signals.
Importing this package loads neither torch nor grpc.
"""

from repsearch.serving.clock import StepClock
from repsearch.serving.jobs import Arrival, JobCancelled, JobContext, JobFunction, JobResult

PROTOCOL_VERSION = 2
TAKEN_OVER = "another orchestrator has taken over"
"""What a refusal of an outdated term says; see `refusals.StaleTerm`."""

__all__ = ["PROTOCOL_VERSION", "TAKEN_OVER", "Arrival", "JobCancelled", "JobContext", "JobFunction", "JobResult", "StepClock"]
