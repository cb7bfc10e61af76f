"""The configuration reference says something about every key, and notices when it is out of date."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from repsearch.config import RunConfig
from repsearch.config.reference import documented, main, reference, value_text
from repsearch.families import FAMILIES

MEMBERS = [(family, name) for family in FAMILIES.values() for name in family.members]


@pytest.mark.parametrize(("family", "name"), MEMBERS, ids=[name for _, name in MEMBERS])
def test_every_field_of_every_plug_in_is_documented(family: Any, name: str) -> None:
    descriptions = documented(family.member(name))
    assert [field for field, text in descriptions.items() if not text] == []


def test_every_field_of_every_section_is_documented() -> None:
    sections = [field.annotation for field in RunConfig.model_fields.values()]
    for section in [RunConfig, *(model for model in sections if isinstance(model, type) and issubclass(model, BaseModel))]:
        undocumented = [name for name, field in section.model_fields.items() if not field.description]
        assert section is RunConfig or undocumented == [], section


def test_every_key_is_on_the_page() -> None:
    page = reference()
    for family, name in MEMBERS:
        assert f'### `name = "{name}"`' in page
        assert all(f"| `{field.name}` | " in page for field in fields(family.member(name)))
    for name in RunConfig.model_fields:
        assert f"## `[{name}]`" in page


def test_descriptions_are_read_from_docstrings_of_class_and_bases() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Base:
        """Base.

        root: folder, with: a colon.
        """

        root: str

    @dataclass(frozen=True, kw_only=True)
    class Member(Base):
        """Member.

        lr: rate. size: side,
            over two lines.

        other: no field, and `lr: in` a sentence.
        """

        lr: float
        size: int
        silent: int

    assert documented(Member) == {"root": "folder, with: a colon.", "lr": "rate.", "size": "side, over two lines.", "silent": ""}


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": 1}, "integer ≥ 1"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "number > 0, ≤ 1"),
        ({"enum": ["a", "b"]}, '`"a"` or `"b"`'),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "true or false or *none*"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, "list of 2 or more (string)"),
    ],
)
def test_values_in_words(schema: dict[str, Any], text: str) -> None:
    assert value_text(schema) == text


def test_check_tells_a_page_that_is_out_of_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "config.md"
    assert main([str(page), "--check"]) == 1
    assert main([str(page)]) == 0
    assert main([str(page), "--check"]) == 0
    page.write_text(page.read_text() + "x")
    assert main([str(page), "--check"]) == 1
    assert "config.md is out of date; run `make docs`" in capsys.readouterr().err
