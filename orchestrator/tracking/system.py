"""CPU, memory, disk and network of the orchestrator's host on the parent run, by MLflow's own sampler."""

from __future__ import annotations

from typing import Any

INTERVAL_S = 5.0


class SystemMetrics:
    """Samples while a run is live; `start` and `stop` may be called in any state."""

    def __init__(self) -> None:
        self._monitor: Any = None

    def start(self, run: str, uri: str) -> None:
        """Sample into MLflow run `run`, after the steps that it has; does nothing if the sampler runs already."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if self.running:
            return
        self._monitor = SystemMetricsMonitor(run, sampling_interval=INTERVAL_S, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    @property
    def running(self) -> bool:
        """Whether the sampling thread lives; it ends by itself when the server is lost."""
        return self._monitor is not None and self._monitor._process is not None and self._monitor._process.is_alive()

    def stop(self) -> None:
        """Log what was sampled and end the thread; waits for a request under way."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
