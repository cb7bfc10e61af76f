"""Reports of rounds: the same terms for every round, and back from JSON unchanged."""

from __future__ import annotations

import dataclasses
import json

import pytest

from orchestrator.report import ROUND_METRICS, RoundReport, search_metric
from repsearch.errors import StoreError
from tests.tracking_helpers import LAYERS, report


def test_a_report_survives_json() -> None:
    before = dataclasses.replace(
        report(1), learned={"path": "a", "digest": "b"}, shards=({"path": "s", "digest": "t"},), attempts={"search": 2, "learn": 1}
    )
    assert RoundReport.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_a_report_names_its_search_layers_in_order() -> None:
    assert report(0).layers() == list(LAYERS)


def test_a_round_without_search_has_no_layers() -> None:
    plain = dataclasses.replace(report(0), metrics=dict.fromkeys(ROUND_METRICS, 0.0))
    assert plain.layers() == []


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (dict.fromkeys(ROUND_METRICS[1:], 0.0), "missing .'test/accuracy'"),
        (dict.fromkeys((*ROUND_METRICS, "test/acuracy"), 0.0), "unknown .'test/acuracy'"),
        (dict.fromkeys((*ROUND_METRICS, search_metric("block0", "after")), float("nan")), "not finite"),
    ],
)
def test_wrong_metrics_are_refused(metrics: dict[str, float], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        dataclasses.replace(report(0), metrics=metrics)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(StoreError, match="not a report of a round"):
        RoundReport.from_dict({**report(0).to_dict(), "surprise": 1})
