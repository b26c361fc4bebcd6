"""API keys come from a variable or a file, and are shown nowhere."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from taskmem.endpoint.keys import resolve_key
from taskmem.errors import UserError
from taskmem.roles import KeySource


def test_a_key_comes_from_its_variable() -> None:
    assert resolve_key(KeySource(variable="JUDGE"), {"JUDGE": "abc\n"}).reveal() == "abc"


def test_a_key_comes_from_its_mounted_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abc\n")
    assert resolve_key(KeySource(file=str(tmp_path / "key")), {}).reveal() == "abc"


def test_a_key_does_not_print() -> None:
    key = resolve_key(KeySource(variable="JUDGE"), {"JUDGE": "abc"})
    assert "abc" not in f"{key} {key!r} {[key]}"
    assert key.hide("the key abc is wrong") == "the key [key] is wrong"


@pytest.mark.parametrize("value", ["", "  \n", "with space", "line\nend", "ключ", "tab\tin"])
def test_a_key_that_is_none_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(UserError, match="environment variable JUDGE") as refusal:
        resolve_key(KeySource(variable="JUDGE"), {"JUDGE": value})
    assert not value.strip() or value not in str(refusal.value)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="environment variable JUDGE"):
        resolve_key(KeySource(variable="JUDGE"), {})
    with pytest.raises(UserError, match="nowhere"):
        resolve_key(KeySource(file=str(tmp_path / "nowhere")), {})


@pytest.mark.parametrize("fields", [{}, {"variable": "A", "file": "b"}])
def test_a_source_is_one_place(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="one of variable and file"):
        KeySource(**fields)
