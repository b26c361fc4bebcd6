"""`taskmem token`: made and shown once, listed by digest, revoked."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from taskmem.commands.token import token_app
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.gateway.tokens import SHAPE, Tokens
from taskmem.store import LocalStore


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    monkeypatch.chdir(tmp_path)
    return LocalStore(tmp_path / "store")


def say(*words: str) -> str:
    done = CliRunner().invoke(token_app, [*words, "--store", "store"], env={"COLUMNS": "80", "TERM": "dumb"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_token_is_printed_alone_so_that_a_script_can_keep_it(store: LocalStore) -> None:
    token = say("create", "door", "--by", "Ada", "--label", "the agent").removesuffix("\n")
    assert SHAPE.fullmatch(token)
    assert Tokens(store, lambda: 0.0).environment_of(token) == "door"


def test_the_list_shows_whose_it_is_and_never_the_token(store: LocalStore) -> None:
    tokens = [
        say("create", name, "--by", "Ada", "--label", "a long label of a token [red]").strip()
        for name in ("door", "shop")
    ]
    listed = say("list")
    assert [sha256_bytes(token)[:12] in listed for token in tokens] == [True, True]
    assert not [token for token in tokens if token in listed or token[:12] in listed]
    assert "door" in listed and "shop" in listed and "Ada" in listed and "[red]" in listed.replace("\n", "")
    assert max(map(len, listed.splitlines())) <= 80
    assert "shop" not in say("list", "door")


def test_a_revoked_token_is_listed_as_that_and_good_for_nothing(store: LocalStore) -> None:
    token = say("create", "door", "--by", "Ada").strip()
    digest = sha256_bytes(token)
    assert say("revoke", digest[:8]) == f"{digest[:12]} of door: revoked\n"
    assert len(re.findall(r"\d{4}-\d\d-\d\d", say("list"))) == 2
    assert Tokens(store, lambda: 0.0).environment_of(token) is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("create", "../door", "--by", "Ada"), "not a safe name"),
        (("create", "policy", "--by", "Ada"), "stands for the policy"),
        (("revoke", "12345678"), "no such token"),
        (("revoke", "tm_abc"), "hex digits of its digest"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], reason: str, store: LocalStore) -> None:
    with pytest.raises(UserError, match=reason):
        say(*words)
    assert list(store.list("tokens/")) == []
