"""Plug-in families: members of this project import, and members of other packages are found by entry point."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repsearch.config import parse_config
from repsearch.errors import ConfigError
from repsearch.families import DATASETS, FAMILIES, Family
from tests.test_config_validation import table

MEMBERS = [(family, name) for family in FAMILIES.values() for name in family.members]

PLUG_IN = '''
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Blobs:
    """Blobs.

    count: examples.
    """
    count: int = 3

not_a_class = 3
'''


@pytest.mark.parametrize(("family", "name"), MEMBERS, ids=[name for _, name in MEMBERS])
def test_every_member_is_a_frozen_keyword_only_dataclass(family: Family, name: str) -> None:
    member: Any = family.member(name)
    assert dataclasses.is_dataclass(member)
    assert member.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(member))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package on the path, as pip lays it out, with datasets of its own."""
    (tmp_path / "blobs_plug_in.py").write_text(PLUG_IN)
    info = tmp_path / "blobs_plug_in-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: blobs-plug-in\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[repsearch.datasets]\n"
        "blobs = blobs_plug_in:Blobs\n"
        "digits = blobs_plug_in:Blobs\n"
        "gone = blobs_plug_in:Gone\n"
        "value = blobs_plug_in:not_a_class\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_a_member_of_another_package_is_chosen_by_name() -> None:
    config = parse_config(table("dataset", "blobs"))
    assert config.dataset == {"name": "blobs", "count": 3}
    assert parse_config(table("dataset", {"name": "blobs", "count": 5})).dataset["count"] == 5
    with pytest.raises(ConfigError, match=r"dataset\.cuont: unknown key 'cuont'; did you mean 'count'\?"):
        parse_config(table("dataset", {"name": "blobs", "cuont": 5}))


@pytest.mark.usefixtures("installed")
def test_names_list_members_of_other_packages_last_and_do_not_replace_ours() -> None:
    assert DATASETS.names() == [*DATASETS.members, "blobs", "gone", "value"]
    assert DATASETS.member("digits").__module__ == "repsearch.datasets.digits"
    with pytest.raises(ConfigError, match=r"dataset: unknown name 'blob'; did you mean 'blobs'\?; known: .*blobs"):
        DATASETS.member("blob", at="dataset")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("name", "message"), [("gone", "cannot be imported: .*Gone.*; reinstall it"), ("value", "is not a dataclass")])
def test_a_broken_plug_in_is_named_with_its_package(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"dataset: plug-in '{name}' \(blobs_plug_in:\w+, from blobs-plug-in\) {message}"):
        DATASETS.member(name, at="dataset")


def test_listing_names_loads_no_torch() -> None:
    code = "import sys, repsearch.families as f; [x.names() for x in f.FAMILIES.values()]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
