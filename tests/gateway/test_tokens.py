"""Bearer tokens: shown once, kept as digests, good until they are revoked."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.gateway.tokens import SHAPE, Tokens, create_token, revoke_token, tokens
from taskmem.store import CorruptObject, LocalStore

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
LATER = datetime(2026, 3, 2, 12, 30, tzinfo=UTC)


class Counted(LocalStore):
    """A store that counts what is read."""

    gets = 0

    def get(self, key: str):  # type: ignore[no-untyped-def]
        self.gets += 1
        return super().get(key)


class Hand:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "store")


@pytest.fixture
def clock() -> Hand:
    return Hand()


def test_a_token_names_its_environment_and_only_its_digest_is_kept(store: Counted, tmp_path: Path, clock: Hand) -> None:
    token = create_token(store, "door", "Ada", NOW, "the agent")
    assert SHAPE.fullmatch(token)
    assert Tokens(store, clock).environment_of(token) == "door"
    kept = json.loads(store.get(f"tokens/{sha256_bytes(token)}").data)
    wanted = {
        "environment": "door",
        "label": "the agent",
        "created": "2026-03-01T12:30:00Z",
        "by": "Ada",
        "revoked": None,
    }
    assert kept == {"schema_version": 1, **wanted}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


def test_no_two_tokens_are_alike(store: Counted) -> None:
    made = [create_token(store, "door", "Ada", NOW) for _ in range(20)]
    assert len(set(made)) == 20


@pytest.mark.parametrize(
    "token", ["", "tm_", "tm_" + "a" * 42, "tm_" + "a" * 44, "sk-" + "a" * 43, "tm_../" + "a" * 40]
)
def test_what_has_not_the_shape_of_one_is_not_even_looked_for(token: str, store: Counted, clock: Hand) -> None:
    assert Tokens(store, clock).environment_of(token) is None
    assert store.gets == 0


def test_a_token_that_nobody_made_is_for_no_environment(store: Counted, clock: Hand) -> None:
    create_token(store, "door", "Ada", NOW)
    assert Tokens(store, clock).environment_of("tm_" + "a" * 43) is None


def test_a_revoked_token_is_good_for_nothing_after_the_seconds_it_is_remembered(store: Counted, clock: Hand) -> None:
    book, token = Tokens(store, clock, 5.0), create_token(store, "door", "Ada", NOW)
    assert book.environment_of(token) == "door"
    digest, record = revoke_token(store, sha256_bytes(token)[:8], LATER)
    assert (digest, record.revoked) == (sha256_bytes(token), LATER)
    clock.now = 4.9
    assert book.environment_of(token) == "door"
    clock.now = 5.0
    assert book.environment_of(token) is None
    assert revoke_token(store, digest, datetime.now(UTC))[1].revoked == LATER


def test_a_token_made_after_a_miss_is_good_within_seconds(
    store: Counted, clock: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskmem.gateway.tokens.secrets.token_bytes", lambda n: bytes(n))
    book = Tokens(store, clock, 5.0)
    assert book.environment_of("tm_" + "A" * 43) is None
    assert create_token(store, "door", "Ada", NOW) == "tm_" + "A" * 43
    clock.now = 5.0
    assert book.environment_of("tm_" + "A" * 43) == "door"


def test_the_store_is_asked_once_in_the_seconds_for_good_and_bad_ones(store: Counted, clock: Hand) -> None:
    book, token = Tokens(store, clock, 5.0), create_token(store, "door", "Ada", NOW)
    for _ in range(10):
        assert book.environment_of(token) == "door"
        assert book.environment_of("tm_" + "a" * 43) is None
    assert store.gets == 2


def test_who_guesses_tokens_neither_fills_the_memory_nor_drives_good_ones_out(store: Counted, clock: Hand) -> None:
    book, token = Tokens(store, clock, 5.0, most=10), create_token(store, "door", "Ada", NOW)
    assert book.environment_of(token) == "door"
    for number in range(100):
        book.environment_of(f"tm_{number:043}")
    before = store.gets
    assert book.environment_of(token) == "door"
    assert store.gets == before
    assert len(book._bad) == 10


def test_a_damaged_token_is_an_error_and_not_a_refusal(store: Counted, clock: Hand, tmp_path: Path) -> None:
    token = create_token(store, "door", "Ada", NOW)
    path = tmp_path / "store" / "objects" / "tokens" / f"{sha256_bytes(token)}~"
    path.write_bytes(path.read_bytes().replace(b"door", b"shop"))
    with pytest.raises(CorruptObject):
        Tokens(store, clock).environment_of(token)


def test_tokens_are_listed_by_environment_oldest_first(store: Counted) -> None:
    second = create_token(store, "door", "Ada", LATER)
    first = create_token(store, "door", "Ada", NOW)
    create_token(store, "shop", "Bob", NOW)
    assert [digest for digest, _ in tokens(store, "door")] == [sha256_bytes(first), sha256_bytes(second)]
    assert [record.environment for _, record in tokens(store)].count("shop") == 1


@pytest.mark.parametrize(
    ("environment", "by", "label", "reason"),
    [
        ("../door", "Ada", "", "not a safe name"),
        ("policy", "Ada", "", "stands for the policy without adapter"),
        ("door", "", "", "token by: String should have at least 1 character"),
        ("door", "Ada", "x" * 201, "token label: String should have at most 200"),
        ("door", "Ada\x1b[31m", "", "without control characters"),
    ],
)
def test_senseless_tokens_are_not_made(environment: str, by: str, label: str, reason: str, store: Counted) -> None:
    with pytest.raises(UserError, match=reason):
        create_token(store, environment, by, NOW, label)
    assert tokens(store) == []


def test_only_one_token_is_revoked_and_only_by_its_digest(store: Counted) -> None:
    create_token(store, "door", "Ada", NOW)
    with pytest.raises(UserError, match="no such token"):
        revoke_token(store, "0" * 64, LATER)
    for prefix in ("", "abc", "../../policies", "ABCDEF01"):
        with pytest.raises(UserError, match="give 8 or more hex digits"):
            revoke_token(store, prefix, LATER)
    assert [record.revoked for _, record in tokens(store)] == [None]


def test_a_prefix_that_several_tokens_share_revokes_none(store: Counted) -> None:
    token = create_token(store, "door", "Ada", NOW)
    digest = sha256_bytes(token)
    store.put_if_absent(f"tokens/{digest[:8]}{'0' * 56}", store.get(f"tokens/{digest}").data)
    with pytest.raises(UserError, match="2 tokens begin so"):
        revoke_token(store, digest[:8], LATER)
