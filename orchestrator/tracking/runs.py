"""MLflow runs of a run: the parent and one child per round, found again by state or tags, or created."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.tracking.connect import Connection
from orchestrator.tracking.state import State

PARENT_TAG = "mlflow.parentRunId"
KIND_TAG = "kind"
ROUND_TAG = "round"


@dataclass
class Runs:
    """Looks up, creates, reopens and ends MLflow runs; `state` remembers their ids."""

    connection: Connection
    state: State
    created: set[str] = field(default_factory=set)
    """Runs created by this object: they have no history."""

    def check_parent(self) -> None:
        """Forget the runs of the state if MLflow has no such parent any more, or the user deleted it."""
        from mlflow.exceptions import MlflowException

        if not self.state.parent:
            return
        try:
            gone = self.connection.client.get_run(self.state.parent).info.lifecycle_stage != "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            gone = True
        if gone:
            self.state.forget_runs()

    def parent(self, *, run_id: str, name: str, tags: Mapping[str, str], start: float) -> str:
        """Return the MLflow run of the run `run_id`, running."""
        if not self.state.parent:
            tags = {**tags, KIND_TAG: "run"}
            self.state.parent = self._find({KIND_TAG: "run", "run_id": run_id}) or self._create(name, tags, start)
        self._reopen(self.state.parent)
        return self.state.parent

    def child(self, round: int, *, tags: Mapping[str, str], start: float) -> str:
        """Return the MLflow run of a round; created if need be, its status left as it is."""
        if round not in self.state.children:
            tags = {**tags, KIND_TAG: "round", ROUND_TAG: str(round), PARENT_TAG: self.state.parent}
            found = self._find({PARENT_TAG: self.state.parent, ROUND_TAG: str(round)})
            self.state.children[round] = found or self._create(f"round {round}", tags, start)
        return self.state.children[round]

    def reopen_child(self, round: int) -> None:
        """Set a round's run running again."""
        self._reopen(self.state.children[round])

    def end(self, run: str, status: str, time: float) -> None:
        """Set the final status of `run`; time in Unix seconds."""
        self.connection.client.set_terminated(run, status, end_time=_milliseconds(time))

    def end_open_children(self, status: str, time: float) -> None:
        """End every child that still runs, whichever process began it."""
        for run in self.state.children.values():
            if self.connection.client.get_run(run).info.status == "RUNNING":
                self.end(run, status, time)

    def _reopen(self, run: str) -> None:
        if self.connection.client.get_run(run).info.status != "RUNNING":
            self.connection.client.update_run(run, status="RUNNING")

    def _find(self, tags: Mapping[str, str]) -> str:
        text = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self.connection.client.search_runs(
            [self.connection.experiment_id], text, max_results=1, order_by=["attributes.start_time ASC"]
        )
        return str(found[0].info.run_id) if found else ""

    def _create(self, name: str, tags: Mapping[str, str], start: float) -> str:
        run = self.connection.client.create_run(self.connection.experiment_id, _milliseconds(start), dict(tags), name)
        self.created.add(run.info.run_id)
        return str(run.info.run_id)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
