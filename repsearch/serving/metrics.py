"""What a daemon tells Prometheus: read from its table when asked, so that nothing is counted twice. Needs the extra `metrics`.

The endpoint is read-only and serves `/metrics` alone. It listens on loopback, or on other addresses with the daemon's own certificate, for
clients that show one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from repsearch.errors import ConfigError, DaemonError
from repsearch.serving.protection import Protection, is_loopback, split_address
from repsearch.serving.table import Table

PREFIX = "repsearch_daemon"
MISSING = "--metrics needs prometheus-client: pip install 'repsearch[metrics]'"


def check_metrics(listen: str, protection: Protection) -> None:
    """Refuse, by a ConfigError, an address that other machines reach without showing a certificate."""
    host, _ = split_address(listen)
    if not (is_loopback(host) or protection.ca is not None or protection.insecure):
        raise ConfigError(f"--metrics {listen}: other addresses than loopback need --tls-cert, --tls-key and --tls-ca, or --insecure")
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise ConfigError(MISSING) from None


def serve_metrics(collectors: Iterable[Any], listen: str, protection: Protection) -> tuple[str, Callable[[], None]]:
    """Serve what `collectors` tell at `listen`; return the address with its port, and what stops it. DaemonError if it cannot listen."""
    import prometheus_client

    host, port = split_address(listen)
    registry = prometheus_client.CollectorRegistry()
    for collector in (prometheus_client.ProcessCollector(registry=None), *collectors):
        registry.register(collector)
    tls: dict[str, Any] = {}
    if not is_loopback(host) and protection.ca is not None:
        tls = {"certfile": protection.cert, "keyfile": protection.key, "client_cafile": protection.ca, "client_auth_required": True}
    try:
        server, thread = prometheus_client.start_http_server(port, host.strip("[]"), registry, **tls)
    except OSError as error:
        raise DaemonError(f"cannot serve metrics on {listen}: {error.strerror or error}; choose another --metrics") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return f"{host}:{server.server_port}", stop


class TableCollector:
    """The jobs of a daemon as metrics; `facts` are labels of its one information metric, `computes` whether it can run jobs now."""

    def __init__(self, table: Table, facts: dict[str, str], computes: Callable[[], bool]) -> None:
        self._table, self._facts, self._computes = table, facts, computes

    def collect(self) -> Iterable[Any]:
        """Yield the metrics as they are now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        now = self._table.figures()
        yield InfoMetricFamily(PREFIX, "The daemon", value=self._facts)
        for name, text, value in (
            ("ready", "Whether the compute process can run jobs", float(self._computes())),
            ("draining", "Whether it stops when its job is done", float(self._table.draining)),
            ("jobs_waiting", "Jobs in the queue", float(now.waiting)),
            ("job_seconds_without_progress", "Seconds since the running job advanced; 0 without one", now.silent_s),
            ("job_done", "Units that the running job has done, such as images", float(now.done)),
            ("job_total", "Units that it is of", float(now.total)),
        ):
            yield GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)
        running = GaugeMetricFamily(f"{PREFIX}_job_running", "Whether a job runs, by kind", labels=["kind"])
        for kind in now.running:
            running.add_metric([kind], 1.0)
        yield running
        ended = CounterMetricFamily(f"{PREFIX}_jobs", "Jobs that ended", labels=["kind", "state"])
        for (kind, state), number in sorted(now.ended.items()):
            ended.add_metric([kind, state], float(number))
        yield ended
