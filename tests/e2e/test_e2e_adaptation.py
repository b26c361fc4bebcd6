"""Nightly adaptation: five environments, of which exactly the good one is promoted; the same night again changes nothing."""

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

import pytest
from adaptation_parts import (
    ENVIRONMENTS,
    IMAGES,
    OTHER_TASK,
    SEED,
    SHARDS,
    TASK,
    Deployment,
    Night,
    below,
    first_feedback,
    trained,
)

from taskmem.evaluation.gate import Verdict
from taskmem.feedback import Watermark
from taskmem.files import canonical_json, sha256_bytes, sha256_tree
from taskmem.lineage.code import commit
from taskmem.records import FeedbackEvent, Question, read_records
from taskmem.registry import Pointer, champion, fetch, read_manifest, read_verdict, versions, watermark
from taskmem.registry.manifest import FILES
from taskmem.stages.gating import Held
from taskmem.steer import read_adapter

SHARED = ("rollout_cache", "judge_scoring", "evaluate policy")
OF_A_SHARD = ("collect", "mine", "adapt", "gate", "promote")
STAGES = (
    *SHARED,
    *(f"{stage}/{shard['name']}" for shard in SHARDS for stage in OF_A_SHARD),
    "lineage_record",
    "notify",
)


@dataclass(frozen=True)
class Nights:
    """One night three times, in the same place, again there, and elsewhere with the same store; then the next one."""

    site: Deployment
    first: Night
    again: Night
    elsewhere: Night
    second: Night


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    root = tmp_path_factory.mktemp("deployment")
    site = trained(root)
    first_feedback(site)
    first, again, elsewhere = (site.night(root / out) for out in ("here", "here", "elsewhere"))
    # three questions of the old task and two of another: pairs that the first night did not have
    site.ask("good", [*site.asked(TASK, slice(5, 8)), *site.asked(OTHER_TASK, slice(0, 2))])
    return Nights(site, first, again, elsewhere, site.night(root / "here", SHARDS[:1]))


def registered(objects: dict[str, bytes], *without: str) -> dict[str, bytes]:
    """What the registry holds, but for some environments."""
    left_out = tuple(f"registry/{environment}/" for environment in without)
    return {
        key: data
        for key, data in objects.items()
        if key.startswith("registry/") and not key.startswith(left_out or "-")
    }


def candidates(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {key: data for key, data in objects.items() if key.startswith("rollouts/")}


def statuses(night: Night) -> dict[str, str]:
    return {name: outcome.status for name, outcome in night.outcomes.items()}


def test_exactly_the_good_environment_is_promoted(nights: Nights) -> None:
    assert statuses(nights.first) == {
        "good": "promoted",
        "worse": "kept",
        "judge-down": "failed",
        "corrupt": "skipped",
        "quiet": "skipped",
    }
    assert {name: outcome.version for name, outcome in nights.first.outcomes.items() if outcome.version} == {
        "good": "good@v1"
    }
    pointers = [key for key in nights.first.objects if key.endswith("/champion")]
    assert pointers == ["registry/good/champion"]


@pytest.mark.parametrize(
    ("environment", "stage", "reason"),
    [
        (
            "good",
            "promotion",
            r"\d+ wins and \d+ losses in 12 streams \(p = 0\.0\d+\), gold questions 0\.\d+ -> 0\.\d+$",
        ),
        (
            "worse",
            "promotion",
            r".*the challenger does not win: 0 contexts won and \d+ lost.*; format falls from 0\.9\d+ to 0\.\d+: by ",
        ),
        (
            "judge-down",
            "preference_mining",
            r"the helpfulness judge failed (\d+) of \1 comparisons, the first: none of the questions is one of this world's;",
        ),
        (
            "corrupt",
            "feedback_collection",
            r"too little feedback: 0 questions in all, needs 5; 10 lines refused, the first corrupt.jsonl:1: .*JSON",
        ),
        ("quiet", "feedback_collection", r"no feedback yet$"),
    ],
)
def test_every_environment_has_its_reason_in_the_record_and_in_the_summary(
    nights: Nights, environment: str, stage: str, reason: str
) -> None:
    outcome = nights.first.outcomes[environment]
    assert outcome.stage == stage
    assert re.match(reason, outcome.reason)
    summary = nights.first.files["lineage_record:summary/"].decode()
    (row,) = [line for line in summary.splitlines() if line.startswith(f"| {environment} |")]
    # the summary is shown as a page, so what is special there is escaped
    told = html.unescape(re.sub(r"\\(.)", r"\1", row))
    assert told == f"| {environment} | {environment} | {outcome.status} | {outcome.version or ''} | {outcome.reason} |"


def test_the_record_has_every_environment_and_the_digests_of_what_was_used(tmp_path: Path, nights: Nights) -> None:
    first = nights.first
    record = json.loads(first.files["lineage_record:record/lineage.json"])
    assert [e["environment"] for e in record["environments"]] == sorted(ENVIRONMENTS)
    assert record["artifacts"]["policy"] == [sha256_tree(nights.site.policy)]
    for stage, output in (
        ("collect", "feedback"),
        ("mine", "preferences"),
        ("adapt", "adapters"),
        ("gate", "verdicts"),
    ):
        made = [first.made(f"{stage}/{shard['name']}", output) for shard in SHARDS]
        assert record["artifacts"][output] == sorted(tree_digest(files) for files in made)


def tree_digest(files: dict[str, bytes]) -> str:
    return sha256_bytes(canonical_json([[name, sha256_bytes(files[name])] for name in sorted(files, key=PurePath)]))


def environments_in(files: dict[str, bytes]) -> set[str]:
    return {name.split("/")[0] for name in files if "/" in name}


def test_what_failed_or_was_skipped_leaves_nothing_behind(nights: Nights) -> None:
    first = nights.first
    assert environments_in(first.made("collect/one", "feedback")) == {"good"}
    assert environments_in(first.made("collect/two", "feedback")) == {"judge-down", "worse"}
    for stage, output in (("mine", "preferences"), ("adapt", "adapters"), ("gate", "verdicts")):
        assert environments_in(first.made(f"{stage}/one", output)) == {"good"}
        assert environments_in(first.made(f"{stage}/two", output)) == {"worse"}
    for environment in ("judge-down", "corrupt", "quiet"):
        assert not [key for key in first.objects if f"/{environment}/" in key]


def test_the_champion_resolves_to_the_trained_adapter_and_its_verdict(tmp_path: Path, nights: Nights) -> None:
    store, first = nights.site.store, nights.first
    pointer = Pointer.model_validate_json(first.objects["registry/good/champion"])
    verdict = first.made("gate/one", "verdicts")["good/verdict.json"]
    assert Verdict.model_validate_json(verdict).promote
    assert read_verdict(store, "good", pointer.verdict) == verdict
    assert pointer.version == "v1"
    fetch(store, "good", pointer.version, tmp_path / "fetched")
    # the registry publishes an adapter's files; who moved it stays with the run
    trained_here = {
        name: data for name, data in below(first.made("adapt/one", "adapters"), "good/").items() if name in FILES
    }
    assert set(trained_here) == set(FILES)
    assert {name: (tmp_path / "fetched" / name).read_bytes() for name in trained_here} == trained_here
    _, vector = read_adapter(tmp_path / "fetched")
    assert float(vector.norm()) > 0


def test_the_manifest_says_what_the_adapter_was_made_of(nights: Nights) -> None:
    manifest = read_manifest(nights.site.store, "good", "v1")
    events = read_records(nights.site.events / "good.jsonl", FeedbackEvent)[:5]
    assert manifest.policy == sha256_tree(nights.site.policy)
    pairs = nights.first.made("mine/one", "preferences")["good/preferences.jsonl"]
    assert manifest.pairs == sha256_bytes(pairs)
    assert manifest.feedback == sha256_bytes(canonical_json([event.question for event in events]))
    assert (manifest.feedback_count, manifest.parent, manifest.seed) == (5, None, SEED)
    assert manifest.image == IMAGES.train
    # the checkout may be worked on meanwhile
    assert manifest.commit.removesuffix("-dirty") == commit().removesuffix("-dirty")
    assert [judge.role for judge in manifest.judges] == ["helpfulness"]


def test_no_answer_and_no_other_tenant_s_question_is_learned_from(nights: Nights) -> None:
    for shard in SHARDS:
        for name, data in nights.first.made(f"collect/{shard['name']}", "feedback").items():
            if "/questions/" in name:
                questions = [Question.model_validate_json(line) for line in data.splitlines()]
                assert len(questions) == 5
                assert name == f"{questions[0].environment}/questions/{questions[0].environment}.jsonl"
                assert {(q.environment, q.answer) for q in questions} == {(questions[0].environment, None)}


@pytest.mark.parametrize("where", ["again", "elsewhere"])
def test_the_same_night_again_changes_nothing(nights: Nights, where: str) -> None:
    first, again = nights.first, getattr(nights, where)
    assert again.objects == first.objects
    used = dict.fromkeys(("good", "worse"), "skipped")
    assert statuses(again) == {**statuses(first), **used}
    for name, outcome in again.outcomes.items():
        if name in used:
            assert outcome.reason == "too little feedback: 0 questions since the last adaptation, needs 5"
        else:
            assert outcome == first.outcomes[name]


def test_the_same_night_in_the_same_place_does_not_do_again_what_all_shards_share(nights: Nights) -> None:
    assert nights.first.said == dict.fromkeys(STAGES, "done")
    assert set(nights.again.said) == set(STAGES)
    assert {stage: nights.again.said[stage] for stage in SHARED} == dict.fromkeys(SHARED, "unchanged")


def test_the_same_night_elsewhere_takes_its_candidates_from_the_store(nights: Nights) -> None:
    assert nights.elsewhere.said == dict.fromkeys(STAGES, "done")
    rollouts = [night.made("rollout_cache", "rollouts")["rollouts.jsonl"] for night in (nights.first, nights.elsewhere)]
    assert rollouts[1] == rollouts[0]
    assert len(candidates(nights.first.objects)) == len(rollouts[0].splitlines()) == 8 * 12


def test_the_next_night_holds_a_new_version_against_the_champion(nights: Nights) -> None:
    site, second = nights.site, nights.second
    assert [(m.version, m.parent, m.feedback_count) for m in versions(site.store, "good")] == [
        ("v1", None, 5),
        ("v2", "v1", 10),  # the recent questions: the new ones, and those of the night before
    ]
    gated = below(second.made("gate/one", "verdicts"), "good/")
    held = Held.model_validate_json(gated["held.json"])
    assert (held.environment, held.policy) == ("good", sha256_tree(site.policy))
    assert held.champion == Pointer.model_validate_json(nights.first.objects["registry/good/champion"])
    trained_first = below(nights.first.made("adapt/one", "adapters"), "good/")
    assert {name: gated[f"good@v1/{name}"] for name in FILES} == {name: trained_first[name] for name in FILES}
    before = below(nights.first.made("gate/one", "verdicts"), "good/")
    assert written(gated["champion/memories.jsonl"]) == written(before["challenger/memories.jsonl"])


def written(memories: bytes) -> list[str | None]:
    return [json.loads(line)["text"] for line in memories.splitlines()]


def test_the_next_night_s_champion_is_what_the_gate_says(nights: Nights) -> None:
    outcome = nights.second.outcomes["good"]
    verdict = Verdict.model_validate_json(nights.second.made("gate/one", "verdicts")["good/verdict.json"])
    status, version = ("promoted", "v2") if verdict.promote else ("kept", "v1")
    assert (outcome.status, outcome.version) == (status, f"good@{version}")
    pointer = champion(nights.site.store, "good")
    assert pointer is not None
    assert pointer.version == version
    if not verdict.promote:
        assert outcome.reason == "; ".join(verdict.reasons)


def test_the_next_night_touches_no_other_environment_and_samples_nothing(nights: Nights) -> None:
    first, second = nights.first, nights.second
    assert registered(second.objects, "good") == registered(first.objects, "good")
    assert candidates(second.objects) == candidates(first.objects)
    assert {name: second.outcomes[name] for name in ("corrupt", "quiet")} == {
        name: first.outcomes[name] for name in ("corrupt", "quiet")
    }
    assert {stage: second.said[stage] for stage in SHARED} == dict.fromkeys(SHARED, "unchanged")


def test_the_watermark_stands_at_the_end_of_the_log_that_was_used(nights: Nights) -> None:
    for environment in ("good", "worse"):
        log = (nights.site.events / f"{environment}.jsonl").read_bytes()
        known = watermark(nights.site.store, environment)
        assert known is not None
        assert Watermark.model_validate(known) == Watermark(
            offset=len(log), lines=log.count(b"\n"), sha256=sha256_bytes(log)
        )
