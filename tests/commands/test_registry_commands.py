"""`taskmem registry`: what an operator sees and does, in 80 columns."""

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from taskmem.cli import run
from taskmem.commands.registry import registry_app
from taskmem.evaluation.gate import Gold, Rate, Unscored, Verdict, Wins
from taskmem.files import sha256_bytes
from taskmem.records import Judge, read_json, write_json
from taskmem.registry import (
    Files,
    Manifest,
    Pointer,
    advance,
    challenge,
    champion,
    promote,
    promotion_log,
    watermark,
)
from taskmem.registry.objects import file_key, put_content, to_bytes, version_key
from taskmem.stages.gating import HELD, Held
from taskmem.stages.shard import Shard
from taskmem.store import LocalStore

POLICY, NEW = "a" * 64, "b" * 64
NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
LONG = "a-very-long-name-of-an-environment-somewhere-far-away-that-does-not-fit-a-line-of-a-terminal"
MARK: dict[str, int | str] = {"offset": 120, "lines": 12, "sha256": "a" * 64}
COMMANDS: dict[str, Any] = dict(sorted(get_command(registry_app).commands.items()))  # type: ignore[attr-defined]


def put_version(store: LocalStore, environment: str, number: int, policy: str = POLICY) -> Manifest:
    """A version as `publish` stores it; that its files are an adapter is no business of these commands."""
    contents = [f"{name} of {environment}@v{number}".encode() for name in ("config", "model", "training")]
    digests = [sha256_bytes(data) for data in contents]
    for digest, data in zip(digests, contents, strict=True):
        put_content(store, file_key(environment, digest), data)
    manifest = Manifest(
        environment=environment, version=f"v{number}", layer=1, size=8, norm=0.3, parent=None, policy=policy,
        pairs="c" * 64, feedback="d" * 64, feedback_count=5, commit="unknown", image="local", seed=0,
        judges=(Judge(role="helpfulness", model="world/1", prompt_sha256="e" * 64),),
        files=Files(adapter_config=digests[0], adapter_model=digests[1], training=digests[2]),
    )  # fmt: skip
    store.put_if_absent(version_key(environment, f"v{number}"), to_bytes(manifest))
    return manifest


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
    """door has v1 to v3 and v2 is champion, hall has a champion of the new policy, another a long name."""
    monkeypatch.chdir(tmp_path)
    store = LocalStore(tmp_path / "store")
    for number in (1, 2, 3):
        put_version(store, "door", number)
    put_version(store, "hall", 1, NEW)
    put_version(store, LONG, 1)
    pointer = promote(store, "door", "v1", None, b"{}", "Ada", NOW)
    promote(store, "door", "v2", pointer, b"{}", "taskmem adaptation, as somebody", NOW, "a reason of some length")
    promote(store, "hall", "v1", None, b"{}", "Ada", NOW)
    promote(store, LONG, "v1", None, b"{}", "Ada", NOW)
    challenge(store, "door", "v3")
    advance(store, "door", MARK, None)
    return store


def say(line: str, columns: int = 80) -> str:
    done = CliRunner().invoke(registry_app, line.split(), env={"COLUMNS": str(columns), "TERM": "dumb"})
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def mistake(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str) -> str:
    """The one line that `taskmem registry LINE` ends with."""
    monkeypatch.setattr(sys, "argv", ["taskmem", *line.split()])
    with pytest.raises(SystemExit) as ended:
        run(registry_app)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.startswith("taskmem: ")
    assert said.count("\n") == 1
    return said.removeprefix("taskmem: ")


def rows(text: str) -> list[list[str]]:
    """The cells of a table's lines."""
    return [line.split() for line in text.splitlines() if line.strip() and not set(line.strip()) <= set("─━ ")]


def now(store: LocalStore, environment: str = "door") -> Pointer:
    pointer = champion(store, environment)
    assert pointer is not None
    return pointer


def test_there_is_one_command_for_each_thing_an_operator_does() -> None:
    assert set(COMMANDS) == {"list", "show", "promote", "rollback", "verify", "migrate"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_and_explains_the_command_and_every_option(name: str) -> None:
    output = say(f"{name} --help", 250)
    assert COMMANDS[name].help.split("\n")[0] in output
    for parameter in COMMANDS[name].params:
        assert parameter.help, f"{parameter.name} has no help"
        assert all(word in output for word in (*parameter.opts, *parameter.help.split()) if word != parameter.name)


def test_every_environment_is_listed_with_its_champion_and_what_is_served(store: LocalStore) -> None:
    title, head, *found = rows(say("list --store store"))
    assert " ".join(title) == "policy served: none set, so every adapter may be"
    assert head == ["environment", "versions", "champion", "served", "challenger", "policy"]
    assert ["door", "3", "v2", "v2", "v3", "a" * 12] in found
    assert ["hall", "1", "v1", "v1", "none", "b" * 12] in found


def test_one_environment_is_listed_alone(store: LocalStore) -> None:
    assert [row[0] for row in rows(say("list --store store --environment hall"))[2:]] == ["hall"]


@pytest.mark.parametrize("line", ["list", "migrate", "show door", "show door@v1", f"show {LONG}"])
def test_tables_fit_into_80_columns_and_line_up(store: LocalStore, line: str) -> None:
    output = say(f"{line} --store store")
    assert all(len(text) <= 80 for text in output.splitlines())
    # a cell that is too long goes on below, none is cut
    assert "…" not in output
    wide = re.sub(r"\s", "", say(f"{line} --store store", 300))
    assert sorted(c for c in re.sub(r"\s", "", output) if c not in "─━") == sorted(c for c in wide if c not in "─━")


@pytest.mark.parametrize("line", ["list", "migrate"])
def test_each_cell_stands_below_its_column_s_name(store: LocalStore, line: str) -> None:
    lines = [text for text in say(f"{line} --store store").splitlines() if "champion" in text or "door" in text]
    head, row = lines[0], next(text for text in lines[1:] if text.startswith("door"))
    assert head.index("champion") == row.index("v2")


def test_an_environment_is_shown_with_pointers_manifest_and_log(store: LocalStore) -> None:
    output = say("show door --store store")
    assert ["champion", "v2"] in rows(output)
    assert ["previous", "v1"] in rows(output)
    assert ["challenger", "v3"] in rows(output)
    assert ["served", "v2"] in rows(output)
    assert "door@v2" in output
    assert ["policy", POLICY] in rows(output)
    assert ["feedback_count", "5"] in rows(output)
    assert "door: promotions" in output
    first, second = (next(row for row in rows(output) if row[0] == number) for number in ("1", "2"))
    verdict = sha256_bytes(b"{}")[:12]
    assert first == ["1", "2026-03-01", "12:30", "promote", "none", "v1", verdict, "Ada"]
    assert second[:8] == ["2", "2026-03-01", "12:30", "promote", "v1", "v2", verdict, "taskmem"]


def test_one_version_is_shown_with_its_own_manifest(store: LocalStore) -> None:
    output = say("show door@v3 --store store", 120)
    assert "door@v3" in output
    assert sha256_bytes(b"model of door@v3") in output
    assert "helpfulness, world/1, prompt " + "e" * 64 in output


def verdict(folder: Path, manifest: Manifest, pointer: Pointer | None, promotes: bool = True) -> Path:
    """What a gate writes of a challenger: verdict.json, and held.json beside it."""
    wins = Wins(
        wins=40, losses=2, ties=9, by_grammar=0, streams=9, least_wins=30, least_streams=8, p_value=0.002, passed=promotes
    )  # fmt: skip
    gold = Gold(asked=30, least=20, champion=0.4, challenger=0.6, difference=0.2, interval=(0.1, 0.3), passed=True)
    said = Verdict(
        environment=manifest.environment, promote=promotes, reasons=() if promotes else ("it does not win",),
        confidence=0.95, seed=0, win_test=wins, quality={}, coverage={}, gold=gold,
        unscored=Unscored(contexts=Rate(count=0, of=51, share=0.0), bound=0.05, reason=None, passed=True),
    )  # fmt: skip
    held = Held(
        environment=manifest.environment, policy=manifest.policy, challenger="f" * 64, files=manifest.files, champion=pointer
    )  # fmt: skip
    write_json(folder / HELD, held.model_dump(mode="json"))
    write_json(folder / "verdict.json", said.model_dump(mode="json"))
    return folder / "verdict.json"


def test_a_version_is_promoted_and_the_log_says_by_whom(store: LocalStore, tmp_path: Path) -> None:
    from taskmem.registry import read_manifest  # noqa: PLC0415

    verdict(tmp_path / "gate", read_manifest(store, "door", "v3"), now(store))
    line = "promote door@v3 --store store --verdict gate/verdict.json --by Ada"
    assert say(line) == "door: v2 -> v3 (entry 3 of the log)\n"
    entry = promotion_log(store, "door")[-1]
    assert (entry.version, entry.by, entry.action, entry.reason) == ("v3", "Ada", "promote", None)
    assert entry.verdict == sha256_bytes((tmp_path / "gate" / "verdict.json").read_bytes())
    assert say(line) == "door: v3 already, nothing changed\n"
    assert len(promotion_log(store, "door")) == 3


def test_a_promotion_on_a_verdict_that_does_not_fit_needs_a_reason(
    store: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict(tmp_path / "gate", put_version(store, "door", 4), now(store), promotes=False)
    line = "promote door@v4 --store store --verdict gate/verdict.json --by Ada"
    told = "gate/verdict.json: does not say promote; give a verdict that fits door@v4, or a --reason to do without\n"
    assert mistake(capsys, monkeypatch, line) == told
    assert now(store).version == "v2"
    assert say(f"{line} --reason trial") == "door: v2 -> v4 (entry 3 of the log)\n"
    assert promotion_log(store, "door")[-1].reason == "trial"


def test_an_environment_is_rolled_back_step_by_step_or_at_once(store: LocalStore) -> None:
    assert say("rollback door --store store --by Bo") == "door: v2 -> v1 (entry 3 of the log)\n"
    assert say("rollback door --store store --by Bo --to v2") == "door: v1 -> v2 (entry 4 of the log)\n"
    assert say("rollback door --store store --by Bo --to v2") == "door: v2 already, nothing changed\n"
    assert (
        say("rollback door --store store --by Bo --to none --reason smoke") == "door: v2 -> none (entry 5 of the log)\n"
    )
    log = promotion_log(store, "door")
    assert [(e.action, e.version, e.by, e.reason) for e in log[2:]] == [
        ("rollback", "v1", "Bo", None),
        ("rollback", "v2", "Bo", None),
        ("retire", None, "Bo", "smoke"),
    ]
    assert ["champion", "none"] in rows(say("show door --store store"))
    assert ["door", "3", "none", "none", "v3", "none"] in rows(say("list --store store"))


def test_a_champion_that_is_not_served_is_said_to_be_none(store: LocalStore) -> None:
    say(f"migrate --store store --policy {NEW} --by Ada")
    output = say("rollback door --store store --by Bo")
    told = f"it is not served: policy {NEW[:12]} is, and it is of {POLICY[:12]}"
    assert output.splitlines() == ["door: v2 -> v1 (entry 3 of the log)", told]


def test_a_whole_registry_is_verified(store: LocalStore) -> None:
    assert say("verify --store store") == "3 environments: nothing damaged, nothing missing\n"
    assert say("verify door --store store") == "1 environments: nothing damaged, nothing missing\n"


def test_every_damaged_object_is_named_and_the_exit_code_tells(
    store: LocalStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = ["registry/door/versions/v1", "registry/hall/champion", "policies/current"]
    say(f"migrate --store store --policy {NEW} --by Ada")
    for key in spoilt:
        store.compare_and_swap(key, b"[]", store.get(key).etag)
    monkeypatch.setattr(sys, "argv", ["taskmem", "verify", "--store", "store"])
    with pytest.raises(SystemExit) as ended:
        run(registry_app)
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err == "taskmem: store: 3 damaged or missing objects; see the list\n"
    assert [line.partition(": ")[0] for line in said.out.splitlines()] == spoilt
    assert "nothing damaged" in say(f"verify {LONG} --store store")


def test_what_a_new_policy_would_leave_behind_is_shown(store: LocalStore) -> None:
    for number in range(3):
        store.put_if_absent(f"rollouts/{POLICY}/{'5' * 64}/s0/{number}/x", b"{}")
    _, head, *found = rows(say("migrate --store store"))
    assert " ".join(head) == "environment champion its policy eligible contexts questions lines used"
    assert ["door", "v2", "a" * 12, "yes", "3", "5", "12"] in found
    assert ["hall", "v1", "b" * 12, "yes", "0", "5"] in found
    say(f"migrate --store store --policy {NEW} --by Ada")
    title, _, *found = rows(say("migrate --store store"))
    assert title == ["policy", "served:", NEW]
    assert ["door", "v2", "a" * 12, "no", "3", "5", "0"] in found
    assert ["hall", "v1", "b" * 12, "yes", "0", "5"] in found


def test_a_migration_writes_the_shards_of_those_to_be_adapted_anew(store: LocalStore, tmp_path: Path) -> None:
    line = f"migrate --store store --policy {NEW} --by Ada --out shards.json --shards 2"
    say(line)
    shards = read_json(tmp_path / "shards.json")
    assert shards == [
        {"name": "migration-1", "environments": [{"environment": LONG}]},
        {"name": "migration-2", "environments": [{"environment": "door"}]},
    ]
    assert [spec.name for shard in shards for spec in Shard.parse(shard).environments] == [LONG, "door"]
    assert watermark(store, "door") == {}
    before = (tmp_path / "shards.json").read_bytes()
    say(line)
    assert (tmp_path / "shards.json").read_bytes() == before
    say(line.replace("--shards 2", "--shards 9"))
    assert len(read_json(tmp_path / "shards.json")) == 2
    say(line.replace("--shards 2", "--shards 1"))
    (shard,) = read_json(tmp_path / "shards.json")
    assert [spec["environment"] for spec in shard["environments"]] == [LONG, "door"]


def test_a_policy_that_leaves_nobody_behind_needs_no_shards(store: LocalStore, tmp_path: Path) -> None:
    for name in ("door", LONG):
        say(f"rollback {name} --store store --by Bo --to none")
    say(f"migrate --store store --policy {NEW} --out shards.json")
    assert read_json(tmp_path / "shards.json") == []
    entry = json.loads(store.get(next(iter(store.list("policies/log/")))).data)
    assert entry["by"].startswith("taskmem registry migrate, as ")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("list", "Missing option '--store'; see --help"),
        ("list --store ftp://x/y", "store ftp://"),
        ("list --store store --environment attic", "environment attic: not in the registry; see"),
        ("list --store store --environment ..", "environment '..': not a safe name"),
        ("show attic --store store", "environment attic: not in the registry"),
        ("show door@v9 --store store", "door@v9: not in the registry, which has v1, v2, v3 of it; choose another"),
        ("show door@latest --store store", "version 'latest': not a safe name"),
        ("show door@ --store store", "version '': not a safe name"),
        ("promote door --store store --verdict v.json --by Ada", "adapter door: names no version; give it as"),
        (
            "promote door@v3 --store store --verdict v.json --by Ada",
            "v.json: cannot be read (No such file or directory)",
        ),
        ("promote door@v3 --store store --by Ada", "Missing option '--verdict'"),
        ("promote door@v3 --store store --verdict v.json", "Missing option '--by'"),
        ("rollback door --store store", "Missing option '--by'"),
        ("rollback door --store store --by Bo --to v3", "door@v3: has never been champion; promote it on a verdict"),
        ("rollback attic --store store --by Bo", "environment attic: has never had a champion"),
        ("verify attic --store store", "environment attic: not in the registry"),
        ("migrate --store store --policy abc", "policy 'abc': not a safe name; use the hex SHA-256 of one"),
        ("migrate --store store --out shards.json", "--out shards.json: nothing is adapted anew without a new policy"),
        ("migrate --store store --shards 0", "Invalid value for '--shards'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    store: LocalStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    before = list(store.list(""))
    assert mistake(capsys, monkeypatch, line).startswith(says)
    assert list(store.list("")) == before
