"""A shard of environments: what goes wrong in one never stops the others, and every one has its reason."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from taskmem.config import Profile, load_profile
from taskmem.errors import UserError
from taskmem.lineage.outcome import OUTCOMES, Outcome, counts
from taskmem.records import read_records, write_records
from taskmem.stages.shard import PER_ENVIRONMENT, EnvironmentSpec, Shard, SkipError, Work, ready, run_shard

MADE = "made.txt"


@pytest.fixture
def profile() -> Profile:
    return load_profile("miniature")


def shard(*environments: str | dict[str, Any]) -> Shard:
    specs = [spec if isinstance(spec, dict) else {"environment": spec} for spec in environments]
    return Shard.parse({"name": "one", "environments": specs})


def work(raises: Mapping[str, Exception] | None = None) -> Work:
    """Writes a file for each environment, and then raises what is wanted of it."""

    def make(spec: EnvironmentSpec, settings: Profile, folder: Path) -> None:
        (folder / MADE).write_text(f"{spec.name} {settings.mining.recent_questions}")
        if raises and spec.name in raises:
            raise raises[spec.name]

    return make


def outcome(name: str, status: str, reason: str = "", **more: Any) -> Outcome:
    fields = {"environment": name, "name": name, "stage": "earlier", "status": status, "reason": reason, **more}
    return Outcome.model_validate(fields)


def brief(outcomes: list[Outcome]) -> list[tuple[str, str, str]]:
    return [(o.name, o.status, o.reason) for o in outcomes]


def test_every_environment_gets_its_folder_and_its_outcome(tmp_path: Path, profile: Profile) -> None:
    outcomes = run_shard("mining", shard("b", "a"), profile, None, tmp_path, work())
    assert brief(outcomes) == [("b", "ready", ""), ("a", "ready", "")]
    assert {o.stage for o in outcomes} == {"mining"}
    assert read_records(tmp_path / OUTCOMES, Outcome) == outcomes
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", OUTCOMES}


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (SkipError("nothing new"), "skipped", "nothing new"),
        (UserError("log: broken; mend it"), "failed", "log: broken; mend it"),
        (UserError("two\nlines"), "failed", r"two\nlines"),
        (KeyError("x"), "failed", "KeyError: 'x'; the traceback is in the stage's log"),
        (MemoryError(), "failed", "MemoryError: ; the traceback is in the stage's log"),
        (RecursionError("deep"), "failed", "RecursionError: deep; the traceback is in the stage's log"),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_goes_wrong_in_one_never_stops_the_others(
    tmp_path: Path, profile: Profile, at: int, error: Exception, status: str, reason: str
) -> None:
    names = ["a", "b", "c"]
    outcomes = run_shard("mining", shard(*names), profile, None, tmp_path, work({names[at]: error}))
    assert brief(outcomes) == [(n, status, reason) if n == names[at] else (n, "ready", "") for n in names]
    assert [(tmp_path / name).exists() for name in names] == [name != names[at] for name in names]


def test_every_environment_of_a_shard_may_go_wrong(tmp_path: Path, profile: Profile) -> None:
    errors = {"a": SkipError("quiet"), "b": ValueError("odd")}
    outcomes = run_shard("mining", shard("a", "b"), profile, None, tmp_path, work(errors))
    assert counts(outcomes) == {"ready": 0, "skipped": 1, "failed": 1, "kept": 0, "promoted": 0}
    assert [path.name for path in tmp_path.iterdir()] == [OUTCOMES]


def test_an_unexpected_error_leaves_its_traceback_and_a_line_in_the_log(
    tmp_path: Path, profile: Profile, capsys: pytest.CaptureFixture[str]
) -> None:
    run_shard("mining", shard("a", "b"), profile, None, tmp_path, work({"a": KeyError("x"), "b": SkipError("quiet")}))
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "raise raises[spec.name]\nKeyError: 'x'" in said
    assert said.splitlines()[-1] == "b: skipped: quiet"


def test_an_interruption_stops_the_shard_and_leaves_no_outcomes(tmp_path: Path, profile: Profile) -> None:
    def interrupted(spec: EnvironmentSpec, settings: Profile, folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_shard("mining", shard("a"), profile, None, tmp_path, interrupted)
    assert not (tmp_path / OUTCOMES).exists()


def test_only_what_is_ready_is_worked_on_and_other_outcomes_are_carried_on(tmp_path: Path, profile: Profile) -> None:
    before = [outcome("a", "skipped", "quiet"), outcome("b", "ready"), outcome("c", "failed", "broken")]
    write_records(tmp_path / "before" / OUTCOMES, before)
    outcomes = run_shard("mining", shard("c", "a", "b"), profile, tmp_path / "before", tmp_path / "out", work())
    assert outcomes == [before[2], before[0], outcome("b", "ready", stage="mining")]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"b", OUTCOMES}


def test_outcomes_are_carried_through_all_later_stages_untouched(tmp_path: Path, profile: Profile) -> None:
    one = shard("a", "b", "c")
    first = run_shard("first", one, profile, None, tmp_path / "1", work({"a": SkipError("quiet")}))
    second = run_shard("second", one, profile, tmp_path / "1", tmp_path / "2", work({"b": ValueError("odd")}))
    third = run_shard("third", one, profile, tmp_path / "2", tmp_path / "3", work())
    assert third[:2] == [first[0], second[1]]
    assert [(o.stage, o.status) for o in third] == [("first", "skipped"), ("second", "failed"), ("third", "ready")]


def test_an_environment_that_an_earlier_stage_does_not_know_has_failed(tmp_path: Path, profile: Profile) -> None:
    write_records(tmp_path / "before" / OUTCOMES, [outcome("a", "ready")])
    outcomes = run_shard("mining", shard("new", "a"), profile, tmp_path / "before", tmp_path / "out", work())
    assert brief(outcomes) == [
        ("new", "failed", f"{tmp_path / 'before'}: nothing is known of this environment there"),
        ("a", "ready", ""),
    ]
    assert not (tmp_path / "out" / "new").exists()


def test_an_adapter_follows_the_outcomes_of_its_own_name_and_environment(tmp_path: Path, profile: Profile) -> None:
    known = [outcome("a", "skipped", "quiet"), outcome("a2", "ready", environment="a"), outcome("b2", "ready")]
    write_records(tmp_path / "before" / OUTCOMES, known)
    specs: list[str | dict[str, Any]] = [
        {"environment": "a", "adapter": "a2"},
        "a",
        {"environment": "b", "adapter": "b2"},
    ]
    one = shard(*specs)
    outcomes = run_shard("mining", one, profile, tmp_path / "before", tmp_path / "out", work())
    unknown = f"{tmp_path / 'before'}: nothing is known of this environment there"
    assert brief(outcomes) == [("a2", "ready", ""), ("a", "skipped", "quiet"), ("b2", "failed", unknown)]
    assert ready(tmp_path / "before", one.environments[0]) == tmp_path / "before" / "a2"


def test_run_again_a_shard_ends_in_the_same_bytes(tmp_path: Path, profile: Profile) -> None:
    def run() -> dict[str, bytes]:
        run_shard("mining", shard("a", "b"), profile, None, tmp_path, work({"a": SkipError("quiet")}))
        return {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    once = run()
    # a killed attempt did not come to the end of either
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / MADE).write_text("half")
    assert run() == once


def test_progress_counts_environments_however_they_end(tmp_path: Path, profile: Profile) -> None:
    seen: list[tuple[int, int]] = []
    write_records(tmp_path / "before" / OUTCOMES, [outcome("a", "skipped", "quiet"), outcome("b", "ready")])
    failing = work({"b": ValueError("odd")})
    run_shard(
        "mining", shard("a", "b"), profile, tmp_path / "before", tmp_path, failing, lambda at, of: seen.append((at, of))
    )
    assert seen == [(1, 2), (2, 2)]


def test_an_outcome_may_be_the_work_s_own(tmp_path: Path, profile: Profile) -> None:
    kept = outcome("a", "kept", "no win")
    assert run_shard("promotion", shard("a"), profile, None, tmp_path, lambda *_: kept) == [kept]


def test_an_environment_s_settings_are_its_own(tmp_path: Path, profile: Profile) -> None:
    one = shard({"environment": "a", "settings": {"mining": {"recent_questions": 7}}}, "b")
    run_shard("mining", one, profile, None, tmp_path, work())
    assert (tmp_path / "a" / MADE).read_text() == "a 7"
    assert (tmp_path / "b" / MADE).read_text() == f"b {profile.mining.recent_questions}"


@pytest.mark.parametrize("section", sorted(set(Profile.model_fields) - PER_ENVIRONMENT))
def test_an_environment_cannot_change_what_all_share(section: str, tmp_path: Path, profile: Profile) -> None:
    one = shard({"environment": "a", "settings": {section: {}, "mining": {"recent_questions": 7}}}, "b")
    outcomes = run_shard("mining", one, profile, None, tmp_path, work())
    assert [o.status for o in outcomes] == ["failed", "ready"]
    assert outcomes[0].reason.startswith(f"environment a: settings of {section} are shared by all environments; ")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("section", "setting"),
    [
        ("adaptation", "new_questions"),
        ("evaluation", "feedback_questions"),
        ("mining", "recent_questions"),
        ("phase_two", "steps"),
    ],
)
def test_an_environment_may_have_its_own_of_these(section: str, setting: str, profile: Profile) -> None:
    changed = EnvironmentSpec(environment="a", settings={section: {setting: 9}}).profile(profile)
    expected = profile.model_dump()
    expected[section][setting] = 9
    assert changed.model_dump() == expected


def test_no_environment_has_a_gate_of_its_own() -> None:
    assert frozenset({"adaptation", "evaluation", "mining", "phase_two"}) == PER_ENVIRONMENT


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"phase_two": {"learning_rate": -1}}, "phase_two.learning_rate"),
        ({"phase_two": {"steps": 2.5}}, "phase_two.steps"),
        ({"mining": {"candidates": 1}}, "mining.candidates"),
        ({"mining": {"no_such": 1}}, "mining.no_such"),
        ({"evaluation": 7}, "evaluation"),
    ],
)
def test_settings_that_make_no_profile_fail_that_environment_alone(
    tmp_path: Path, profile: Profile, settings: dict[str, Any], field: str
) -> None:
    one = shard({"environment": "a", "settings": settings}, "b")
    outcomes = run_shard("mining", one, profile, None, tmp_path, work())
    assert [o.status for o in outcomes] == ["failed", "ready"]
    assert outcomes[0].reason.startswith(f"environment a: {field}: ")


def test_numbers_that_travelled_as_floats_are_integers_again(profile: Profile) -> None:
    settings = {"phase_two": {"steps": 7.0, "learning_rate": 1.0, "beta": 0.25}, "mining": {"contexts": 5.0}}
    spec = shard({"environment": "a", "settings": settings}).environments[0]
    changed = spec.profile(profile)
    assert (changed.phase_two.steps, changed.mining.contexts) == (7, 5)
    assert (changed.phase_two.learning_rate, changed.phase_two.beta) == (1.0, 0.25)
    assert isinstance(changed.phase_two.steps, int)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"name": "one", "environments": [{"environment": "a"}] * 2}, "the shard: .*an environment stands twice"),
        (
            {"name": "one", "environments": [{"environment": "a"}, {"environment": "b", "adapter": "a"}]},
            "the shard: .*an environment stands twice",
        ),
        ({"name": "one", "environments": [{"environment": OUTCOMES}]}, "the shard: .*can be called outcomes.jsonl"),
        ({"environments": []}, "name: "),
        ({"name": "../up", "environments": []}, "name: "),
        ({"name": "one", "environments": [{"environment": "../up"}]}, r"environments\.0\.environment: "),
        ({"name": "one", "environments": [{"environment": "a", "adapter": "/x"}]}, r"environments\.0\.adapter: "),
        ({"name": "one", "environments": [{"environment": "a", "pairs": "all"}]}, r"environments\.0\.pairs: "),
        ({"name": "one", "environments": [{"environment": "a", "setings": {}}]}, r"environments\.0\.setings: "),
        ({"name": "one", "environment": "a"}, "environment: "),
    ],
)
def test_a_shard_that_is_none_is_refused_in_one_line(value: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"^shard: {said}.*; see the pipeline's parameter `shards`$"):
        Shard.parse(value)


def test_one_environment_may_have_several_adapters_by_name() -> None:
    one = shard("a", {"environment": "a", "adapter": "a2", "control": True, "pairs": "random"})
    assert [(s.environment, s.name, s.control, s.pairs) for s in one.environments] == [
        ("a", "a", False, "mined"),
        ("a", "a2", True, "random"),
    ]


def test_only_one_environment_is_evaluated() -> None:
    assert Shard.parse({"name": "empty"}).only is None
    assert shard("a").only == EnvironmentSpec(environment="a")
    with pytest.raises(UserError, match=r"^shard one: has 2 environments where one is evaluated$"):
        _ = shard("a", "b").only


@pytest.mark.parametrize("status", ["ready", "kept", "promoted"])
def test_the_folder_of_a_finished_environment_is_found(tmp_path: Path, status: str) -> None:
    write_records(tmp_path / OUTCOMES, [outcome("a", status)])
    assert ready(tmp_path, EnvironmentSpec(environment="a")) == tmp_path / "a"


@pytest.mark.parametrize("status", ["skipped", "failed"])
def test_what_did_not_get_there_is_asked_for_in_vain_and_says_why(tmp_path: Path, status: str) -> None:
    write_records(tmp_path / OUTCOMES, [outcome("a", status, "broken log")])
    with pytest.raises(UserError, match=rf"nothing for a \({status} in earlier: broken log\)$"):
        ready(tmp_path, EnvironmentSpec(environment="a"))
    with pytest.raises(UserError, match=r"nothing for b \(it is not there\)$"):
        ready(tmp_path, EnvironmentSpec(environment="b"))
