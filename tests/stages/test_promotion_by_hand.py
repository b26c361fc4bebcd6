"""A champion made by hand: on a verdict that fits, or for a reason that the log keeps."""

import shutil
from pathlib import Path

import pytest
from promotion_parts import NOW, POLICY, Ends, three_adapters

from taskmem.errors import UserError
from taskmem.records import read_json, write_json
from taskmem.registry import Pointer, champion, promotion_log, rollback, versions, watermark
from taskmem.stages.gate import VERDICT
from taskmem.stages.gating import HELD
from taskmem.stages.promotion import promote_by_hand


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return three_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def ends(tmp_path: Path, adapters: list[Path]) -> Ends:
    """v1 is champion of door; v2 won on `night2`, but was rolled back before anything else."""
    ends = Ends(tmp_path, adapters)
    for number in (1, 2):
        ends.night("door", content=number - 1, used=100 * number, night=f"night{number}")
        ends.promote("door", night=f"night{number}")
    rollback(ends.store, "door", "Bo", NOW)
    return ends


def verdict_of(ends: Ends, night: str) -> Path:
    return ends.root / night / "verdicts" / "door" / VERDICT


def by_hand(ends: Ends, version: str, verdict: Path, reason: str | None = None) -> Pointer:
    return promote_by_hand(ends.store, "door", version, verdict, "Ada", NOW, reason)


def held_now(ends: Ends, verdict: Path) -> Path:
    """The verdict as of a gate that held the challenger against the present champion."""
    pointer = champion(ends.store, "door")
    held = read_json(verdict.with_name(HELD))
    write_json(verdict.with_name(HELD), {**held, "champion": pointer.model_dump(mode="json") if pointer else None})
    return verdict


def test_a_version_is_promoted_on_the_verdict_that_is_about_it(ends: Ends) -> None:
    pointer = by_hand(ends, "v2", held_now(ends, verdict_of(ends, "night2")))
    assert (pointer.version, pointer.previous) == ("v2", "v1")
    entry = promotion_log(ends.store, "door")[-1]
    assert (entry.action, entry.by, entry.reason) == ("promote", "Ada", None)


def test_a_version_that_is_champion_stays_it_whatever_the_verdict(ends: Ends) -> None:
    by_hand(ends, "v2", held_now(ends, verdict_of(ends, "night2")))
    before = ends.objects()
    assert by_hand(ends, "v2", ends.root / "nowhere.json") == champion(ends.store, "door")
    assert ends.objects() == before


def edit(path: Path, **changes: object) -> None:
    write_json(path, {**read_json(path), **changes})


def lost(verdict: Path) -> None:
    edit(verdict, promote=False, reasons=["the challenger does not win"])


def other_environment(verdict: Path) -> None:
    edit(verdict, environment="room")
    edit(verdict.with_name(HELD), environment="room")


def half_of_another_environment(verdict: Path) -> None:
    edit(verdict.with_name(HELD), environment="room")


def other_adapter(verdict: Path) -> None:
    shutil.copy(verdict.parents[3] / "night1" / "verdicts" / "door" / HELD, verdict.with_name("first.json"))
    edit(verdict.with_name(HELD), files=read_json(verdict.with_name("first.json"))["files"])


def other_policy(verdict: Path) -> None:
    edit(verdict.with_name(HELD), policy="b" * 64)


def nobody(verdict: Path) -> None:
    edit(verdict.with_name(HELD), champion=None)


def alone(verdict: Path) -> None:
    verdict.with_name(HELD).unlink()


def garbage(verdict: Path) -> None:
    verdict.write_text('{"promote": true}')


REFUSED = {
    lost: "does not say promote",
    other_environment: "is about environment room",
    half_of_another_environment: r"its held\.json is about environment room",
    other_adapter: "is about another adapter",
    other_policy: "is about another adapter",
    nobody: "was held against none, and the champion has moved since, it is v1",
    alone: r"without a held\.json beside it that says what was held against what",
    garbage: "is no verdict of the gate",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_a_verdict_that_does_not_fit_is_refused_unless_there_is_a_reason(ends: Ends, spoil: object) -> None:
    verdict = held_now(ends, verdict_of(ends, "night2"))
    assert callable(spoil)
    spoil(verdict)
    before = ends.objects()
    told = rf"^\S+/verdict\.json: {REFUSED[spoil]}; give a verdict that fits door@v2, or a --reason to do without$"  # type: ignore[index]
    with pytest.raises(UserError, match=told):
        by_hand(ends, "v2", verdict)
    assert ends.objects() == before
    assert by_hand(ends, "v2", verdict, "the fair is tomorrow").version == "v2"
    assert promotion_log(ends.store, "door")[-1].reason == "the fair is tomorrow"


def test_a_verdict_against_the_same_version_at_another_time_is_refused(ends: Ends) -> None:
    """v1 was champion then and is now, but has come back by a rollback."""
    told = "verdict.json: was held against v1, and the champion has moved since, it is v1; give"
    with pytest.raises(UserError, match=told):
        by_hand(ends, "v2", verdict_of(ends, "night2"))


def test_everything_that_speaks_against_it_is_said_in_one_line(ends: Ends) -> None:
    lost(verdict_of(ends, "night1"))
    with pytest.raises(UserError, match="does not say promote; is about another adapter; was held against none, and"):
        by_hand(ends, "v2", verdict_of(ends, "night1"))


@pytest.mark.parametrize(
    ("version", "verdict", "says"),
    [
        ("v3", "night2/verdicts/door/verdict.json", "^door@v3: not in the registry, which has v1, v2 of it"),
        ("v2", "nowhere.json", r"nowhere\.json: cannot be read \(No such file or directory\); give the verdict\.json"),
    ],
)
def test_not_even_a_reason_makes_up_for_what_is_not_there(ends: Ends, version: str, verdict: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        by_hand(ends, version, ends.root / verdict, "because")


def test_nothing_but_the_champion_changes(ends: Ends) -> None:
    known, mark = versions(ends.store, "door"), watermark(ends.store, "door")
    by_hand(ends, "v2", held_now(ends, verdict_of(ends, "night2")))
    assert (versions(ends.store, "door"), watermark(ends.store, "door")) == (known, mark)
    assert {manifest.policy for manifest in known} == {POLICY}
