"""The record of a run: every artifact by its digest, every environment by its outcome, the same bytes each time."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from taskmem.config import Profile, load_profile, override
from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_bytes, sha256_tree
from taskmem.lineage.code import commit
from taskmem.lineage.outcome import OUTCOMES, Outcome, counts
from taskmem.lineage.record import RECORD, outcome_table, write_lineage
from taskmem.records import one_line, read_records

IMAGE = "registry.test/taskmem/train@sha256:" + "7" * 64


@pytest.fixture
def profile() -> Profile:
    return load_profile("miniature")


def outcome(environment: str, status: str = "ready", reason: str = "", **more: Any) -> Outcome:
    fields = {
        "environment": environment,
        "name": environment,
        "stage": "gate",
        "status": status,
        "reason": reason,
        **more,
    }
    return Outcome.model_validate(fields)


ENDED = (
    outcome("shop", "promoted", "40 wins", version="shop@v2"),
    outcome("door", "failed", "the judge | is down"),
    outcome("door", "skipped", "a control", name="door-random"),
)


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def artifacts(root: Path) -> dict[str, list[Path]]:
    pairs = [folder(root / "pairs" / name, preferences=name) for name in ("one", "two")]
    return {"preferences": pairs, "policy": [folder(root / "policy", weights="w", config="c")]}


def write(root: Path, used: dict[str, list[Path]], ended: Sequence[Outcome], profile: Profile, seed: int = 3) -> Any:
    write_lineage(used, ended, profile, IMAGE, seed, root / "record", root / "summary.md")
    return json.loads((root / "record" / RECORD).read_text())


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_record_names_the_code_the_image_the_settings_and_every_artifact(tmp_path: Path, profile: Profile) -> None:
    used = artifacts(tmp_path)
    record = write(tmp_path / "out", used, ENDED, profile)
    settings = sha256_bytes(canonical_json(profile.model_dump(mode="json")))
    assert record["profile"] == {"name": "miniature", "sha256": settings}
    assert (record["schema"], record["image"], record["seed"]) == (1, IMAGE, 3)
    # the checkout may be worked on meanwhile
    assert record["commit"].removesuffix("-dirty") == commit().removesuffix("-dirty")
    assert record["artifacts"] == {
        "policy": [sha256_tree(used["policy"][0])],
        "preferences": sorted(sha256_tree(path) for path in used["preferences"]),
    }


def test_a_record_has_every_environment_in_order_with_its_reason(tmp_path: Path, profile: Profile) -> None:
    record = write(tmp_path / "out", artifacts(tmp_path), ENDED, profile)
    ordered = [ENDED[1], ENDED[2], ENDED[0]]
    assert read_records(tmp_path / "out" / "record" / OUTCOMES, Outcome) == ordered
    assert record["environments"] == [o.model_dump(mode="json", exclude={"schema_version"}) for o in ordered]


def test_the_same_run_is_recorded_in_the_same_bytes_wherever_and_in_whatever_order(
    tmp_path: Path, profile: Profile
) -> None:
    one, other = artifacts(tmp_path / "one"), artifacts(tmp_path / "another place")
    write(tmp_path / "out 1", one, ENDED, profile)
    turned = {kind: other[kind][::-1] for kind in reversed(other)}
    write(tmp_path / "out 2", turned, ENDED[::-1], profile)
    assert files(tmp_path / "out 1") == files(tmp_path / "out 2")


@pytest.mark.parametrize("what", ["artifact", "settings", "seed", "outcome"])
def test_what_a_run_is_made_of_changes_its_record(tmp_path: Path, profile: Profile, what: str) -> None:
    used = artifacts(tmp_path)
    first = write(tmp_path / "first", used, ENDED, profile)
    if what == "artifact":
        (used["policy"][0] / "weights").write_text("v")
    changed = override(profile, {"phase_two": {"steps": 1}}, "x") if what == "settings" else profile
    ended = ENDED[:2] if what == "outcome" else ENDED
    assert write(tmp_path / "second", used, ended, changed, seed=4 if what == "seed" else 3) != first


def test_an_artifact_that_is_not_there_is_a_mistake_and_nothing_is_recorded(tmp_path: Path, profile: Profile) -> None:
    used = {**artifacts(tmp_path), "verdicts": [tmp_path / "gone"]}
    with pytest.raises(UserError, match=rf"^{tmp_path / 'gone'}: not there, so it cannot be recorded; run the stage"):
        write(tmp_path / "out", used, ENDED, profile)
    assert not (tmp_path / "out").exists()


def test_a_run_without_environments_has_a_record_too(tmp_path: Path, profile: Profile) -> None:
    assert write(tmp_path / "out", {}, [], profile)["environments"] == []
    assert (tmp_path / "out" / "summary.md").read_text().count("\n") == 2


def test_the_summary_is_a_table_with_one_row_an_environment(tmp_path: Path, profile: Profile) -> None:
    write(tmp_path / "out", artifacts(tmp_path), ENDED, profile)
    lines = (tmp_path / "out" / "summary.md").read_text().splitlines()
    assert lines[0] == "| environment | adapter | outcome | champion | reason |"
    assert lines[1] == "|---|---|---|---|---|"
    assert lines[2] == r"| door | door | failed |  | the judge \| is down |"
    assert lines[4] == "| shop | shop | promoted | shop@v2 | 40 wins |"
    assert len(lines) == 2 + len(ENDED)


@pytest.mark.parametrize(
    "reason",
    [
        "a | b || c",
        "two\nlines\r\nand\ttabs",
        "<script>alert(1)</script> & more",
        "[click](javascript:alert(1)) ![x](http://x)",
        r"back\slash \| and `code` *bold* _so_ ~gone~ # head",
        "\u202eturned \x1b[31mred",
    ],
)
def test_a_reason_cannot_break_the_table_nor_become_markup(reason: str) -> None:
    row = outcome_table([outcome("door", "failed", reason)]).splitlines()[2:]
    assert len(row) == 1
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row[0])) == 6
    told = row[0].removeprefix("| door | door | failed |  | ").removesuffix(" |")
    assert told.isprintable()
    assert not re.search(r"<|(?<!\\)(?:\\\\)*[`*_\[\]!#]", told)
    assert html.unescape(re.sub(r"\\(.)", r"\1", told)) == one_line(reason)


def test_counts_name_every_status() -> None:
    assert counts([]) == {"ready": 0, "skipped": 0, "failed": 0, "kept": 0, "promoted": 0}
    assert counts(ENDED) == {"ready": 0, "skipped": 1, "failed": 1, "kept": 0, "promoted": 1}
