"""MLflow as a view of the journal: written by one background thread, never on the run's path, and replayable.

A parent run per run, a nested child per round (the first `CHILD_ROUNDS`). `MlflowTracker.put` only wakes the thread, which reads the
journal, applies what is new and notes how far it came in `tracking.json`. Whatever stops it (server dead or hung, process killed),
the rest is applied by the next tracker of the run or by `sync`.

tracker   the thread, its bounds, `sync`
mirror    what each journal record means in MLflow
runs      MLflow runs found again or created
metrics   metric points, logged once each
connect   settings, the client, creation of database and experiment
describe  configuration, dataset and tags in MLflow's terms
model     the final network as an MLflow model
system    system metrics of the orchestrator's host

This package alone imports MLflow, and only when something is applied: importing it is cheap.
"""

from orchestrator.tracking.connect import tracking_uri
from orchestrator.tracking.tracker import MlflowTracker, NoTracker, SyncResult, Tracker, sync

__all__ = ["MlflowTracker", "NoTracker", "SyncResult", "Tracker", "sync", "tracking_uri"]
