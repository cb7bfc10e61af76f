"""Every configuration that ships loads, with nothing left to default that the schema does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from repsearch.config import load_config, parse_config

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_it_loads_and_resolves(path: Path) -> None:
    config = load_config(path)
    assert parse_config(config.model_dump(mode="json")) == config


def test_the_papers_schedules_are_among_them() -> None:
    assert {"digits.toml", "mnist.toml", "paper-cifar10.toml", "paper-mnist.toml"} <= {path.name for path in FILES}
