"""The stages of a night for a shard: what is mined and trained, and why an environment is not."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mined_site import ADAPTER, Site
from night_parts import NEEDED, Logs, brief

from taskmem.cli import shipped_base
from taskmem.config import override
from taskmem.judge.protocols import HelpfulnessJudge, JudgeError, Position
from taskmem.phase_two import frozen, supply
from taskmem.phase_two.frozen import FrozenPolicy
from taskmem.policy.transformers_policy import policy_digest
from taskmem.records import Comparison, Context, Preference, Question, read_records
from taskmem.registry import Provenance, fetch, publish
from taskmem.stages.adapt import phase_two
from taskmem.stages.mining import random_mining
from taskmem.steer import read_adapter
from taskmem.store import LocalStore


class Recorder:
    """Asks a judge, and remembers how many questions it was shown at a time."""

    def __init__(self, judge: HelpfulnessJudge) -> None:
        self.identity = judge.identity
        self.shown: list[int] = []
        self._judge = judge

    def compare(self, context: Context, questions: Sequence[Question], first: str, second: str) -> Position:
        assert all(question.answer is None for question in questions)
        self.shown.append(len(questions))
        return self._verdict(context, questions, first, second)

    def _verdict(self, context: Context, questions: Sequence[Question], first: str, second: str) -> Position:
        return self._judge.compare(context, questions, first, second)


class Undecided(Recorder):
    def _verdict(self, context: Context, questions: Sequence[Question], first: str, second: str) -> Position:
        return "tie"


class Failing(Recorder):
    """Fails for good on one of the contexts, or on all."""

    def __init__(self, judge: HelpfulnessJudge, context: str | None = None) -> None:
        super().__init__(judge)
        self._context = context

    def _verdict(self, context: Context, questions: Sequence[Question], first: str, second: str) -> Position:
        if self._context in (None, context.id):
            raise JudgeError("the endpoint answered 503 four times")
        return super()._verdict(context, questions, first, second)


def test_each_environment_has_the_pairs_that_its_own_questions_prefer(site: Site) -> None:
    assert brief(site.mine("door", "room")) == [("door", "ready", ""), ("room", "ready", "")]
    door, room = site.pairs("door"), site.pairs("room")
    assert min(len(door), len(room)) >= 3
    assert [(p.context, p.chosen, p.rejected) for p in door] != [(p.context, p.chosen, p.rejected) for p in room]
    comparisons = read_records(site.root / "pairs" / "room" / "comparisons.jsonl", Comparison)
    assert {len(comparison.questions) for comparison in comparisons} == {NEEDED}


def test_questions_that_the_judge_cannot_judge_fail_their_environment_alone(site: Site) -> None:
    weather, door = site.mine("weather", "door")
    assert (weather.status, door.status) == ("failed", "ready")
    asked = len(read_records(site.root / "pairs" / "door" / "comparisons.jsonl", Comparison))
    assert weather.reason == (
        f"the helpfulness judge failed {asked} of {asked} comparisons, the first: none of the questions is one of this "
        "world's; mend the judge and run the night again"
    )
    assert not (site.root / "pairs" / "weather").exists()


def test_a_judge_that_is_down_fails_every_environment_with_its_reason(site: Site) -> None:
    down = replace(site, judge=Failing(site.judge))
    outcomes = down.mine("door", "quiet", "room")
    assert [o.status for o in outcomes] == ["failed", "skipped", "failed"]
    assert "the first: the endpoint answered 503 four times; mend the judge" in outcomes[0].reason
    assert outcomes[1].reason == "no feedback yet"


def test_a_judge_may_fail_as_often_as_the_gate_may_leave_contexts_unscored(site: Site) -> None:
    site.mine("door")
    comparisons = read_records(site.root / "pairs" / "door" / "comparisons.jsonl", Comparison)
    context = comparisons[0].context
    share = sum(c.context == context for c in comparisons) / len(comparisons)
    assert 0 < share < 1
    for bound, status in ((share, "ready"), (share * 0.99, "failed")):
        profile = override(site.profile, {"gate": {"unscored": bound}}, "bound")
        bounded = replace(site, profile=profile, judge=Failing(site.judge, context))
        assert bounded.mine("door")[0].status == status


def test_an_environment_without_a_single_pair_is_skipped(site: Site) -> None:
    undecided = replace(site, judge=Undecided(site.judge))
    (outcome,) = undecided.mine("door")
    assert outcome.status == "skipped"
    assert outcome.reason.startswith("no context gave a preference ({'no_agreement': ")
    assert not (site.root / "pairs" / "door").exists()


def test_an_environment_s_own_settings_reach_the_mining(site: Site) -> None:
    judge = Recorder(site.judge)
    recorded = replace(site, judge=judge)
    recorded.mine({"environment": "door", "settings": {"mining": {"questions_shown": 2}}})
    assert set(judge.shown) == {2}
    recorded.mine("door")
    assert set(judge.shown) == {2, NEEDED}


def test_random_pairs_are_drawn_to_match_those_that_were_mined(tmp_path: Path, site: Site) -> None:
    random = {"environment": "door", "adapter": "random", "pairs": "random"}
    logs = Logs(site.root, site.profile)
    assert [o.status for o in logs.collect("door", random, store=False, out="feedback")] == ["ready", "ready"]
    assert brief(site.mine("door", random)) == [("door", "ready", ""), ("random", "ready", "")]
    assert site.pairs("mined", "pairs/random") == site.pairs("door")
    by_hand, paths = (
        tmp_path / "drawn",
        (site.root / "rollouts", site.root / "judgements", site.root / "pairs" / "door"),
    )
    random_mining(*paths, site.profile, 0, by_hand)
    assert site.pairs("random") == read_records(by_hand / "preferences.jsonl", Preference)
    assert 0 < len(site.pairs("random")) <= len(site.pairs("door"))
    assert all(pair.questions == () for pair in site.pairs("random"))


@pytest.mark.parametrize("most", [2, None])
def test_several_pairs_of_a_context_are_mined_and_as_many_drawn_for_the_control(site: Site, most: int | None) -> None:
    several = {"mining": {"pairs_per_context": most}}
    of_each = {"environment": "door", "settings": several}
    Logs(site.root, site.profile).collect("door", *_named(of_each), store=False, out="feedback")
    assert brief(site.mine("door", *_named(of_each))) == [(n, "ready", "") for n in ("door", "mined", "random")]
    one, mined, drawn = (site.pairs(n) for n in ("door", "mined", "random"))
    counts = Counter(pair.context for pair in mined)
    assert set(counts) == {pair.context for pair in one}
    assert [next(p for p in mined if p.context == pair.context) for pair in one] == one
    assert max(counts.values()) == 2
    assert len(one) < len(drawn) <= len(mined)
    assert all(pair.sources for pair in mined)
    summary = json.loads((site.root / "pairs" / "mined" / "summary.json").read_text())
    assert summary["contexts"] == json.loads((site.root / "pairs" / "door" / "summary.json").read_text())["contexts"]


def _named(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**spec, "adapter": "mined"}, {**spec, "adapter": "random", "pairs": "random"}]


def test_the_same_mining_again_gives_the_same_bytes(site: Site) -> None:
    def made() -> dict[str, bytes]:
        site.mine("weather", "door")
        root = site.root / "pairs"
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}

    assert made() == made()


def test_every_environment_gets_an_adapter_of_its_own(site: Site) -> None:
    site.mine("door", "room", "weather", "quiet")
    outcomes = site.train("door", "room", "weather", "quiet")
    assert [(o.name, o.status, o.stage) for o in outcomes] == [
        ("door", "ready", "phase_two_dpo"),
        ("room", "ready", "phase_two_dpo"),
        ("weather", "failed", "preference_mining"),
        ("quiet", "skipped", "feedback_collection"),
    ]
    assert set(site.adapter("door")) == ADAPTER
    weights = [site.adapter(name)["adapter_model.safetensors"] for name in ("door", "room")]
    assert weights[0] != weights[1]


def test_an_adapter_does_not_depend_on_its_shard(site: Site) -> None:
    site.mine("door", "room")
    paths = (site.root / "pairs" / "door", site.root / "rollouts", site.root / "film")
    phase_two(*paths, FrozenPolicy(shipped_base()), "door", site.profile, 0, site.root / "by hand")
    for order, cache in ((["room", "door"], None), (["door", "room"], None), (["room", "door"], site.root / "kept")):
        site.train(*order, trunk_cache=cache)
        assert site.adapter("door", "by hand") == site.adapter("door")


def test_a_shard_reads_the_policy_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.mine("door", "room")
    kept = site.root / "kept"
    site.train("door", "room", trunk_cache=kept)
    calls: Counter[str] = Counter()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls[name] += 1
            return real(*args)

        return call

    monkeypatch.setattr(frozen, "load_upper", counted("upper", frozen.load_upper))
    monkeypatch.setattr(supply, "policy_digest", counted("digest", supply.policy_digest))
    outcomes = site.train("door", "room", out="again", trunk_cache=kept)
    assert [outcome.status for outcome in outcomes] == ["ready", "ready"]
    assert calls == {"upper": 1, "digest": 1}
    assert site.adapter("room", "again") == site.adapter("room")


def test_who_asked_is_carried_from_the_feedback_into_the_adapter_s_record(site: Site) -> None:
    site.mine("door")
    site.train("door")
    record = json.loads(site.adapter("door")["influence.json"])
    pairs = site.pairs("door")
    assert [p["sources"] for p in record["pairs"]] == [list(pair.sources) for pair in pairs]
    assert set(record["sources"]) == {"0" * 64, "1" * 64, "2" * 64}
    # five questions, all of them shown: two each of the first two sources, one of the third
    shares = [pytest.approx(len(pairs) * part, abs=1e-5) for part in (0.4, 0.4, 0.2)]
    assert [e["pairs"] for e in record["sources"].values()] == shares


def test_random_pairs_rest_on_nobody_s_questions_and_record_nobody(site: Site) -> None:
    random = {"environment": "door", "adapter": "random", "pairs": "random"}
    Logs(site.root, site.profile).collect(random, store=False, out="feedback")
    site.mine(random)
    site.train(random)
    assert set(site.adapter("random")) == ADAPTER - {"influence.json"}


def test_an_adapter_with_its_record_of_sources_is_published_without_it(site: Site) -> None:
    site.mine("door")
    site.train("door")
    store = LocalStore(site.root / "store")
    provenance = Provenance(
        parent=None, policy=policy_digest(shipped_base()), pairs="c" * 64, feedback="d" * 64, feedback_count=5, judges=(),
        commit="unknown", image="local", seed=0,
    )  # fmt: skip
    version = publish(store, "door", site.root / "adapters" / "door", provenance, read_adapter).version
    fetch(store, "door", version, site.root / "fetched")
    fetched = {path.name: path.read_bytes() for path in (site.root / "fetched").iterdir()}
    made = site.adapter("door")
    assert {name: fetched.get(name) for name in ADAPTER - {"influence.json"}} == {
        name: made[name] for name in ADAPTER - {"influence.json"}
    }
    assert "influence.json" not in fetched


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"layer": 99}, ".*/base: has decoder layers 0 to 3, phase_two.layer is 99; "),
        ({"learning_rate": 1e30}, ".*/door: the vector's norm is inf after training; lower phase_two.learning_rate$"),
        ({"beta": 0}, "environment door: phase_two.beta"),
    ],
)
def test_training_that_fails_stops_no_other(site: Site, settings: dict[str, Any], reason: str) -> None:
    site.mine("door", "room")
    door, room = site.train({"environment": "door", "settings": {"phase_two": settings}}, "room")
    assert (door.status, room.status) == ("failed", "ready")
    assert re.match(reason, door.reason)
    assert not (site.root / "adapters" / "door").exists()
    assert set(site.adapter("room")) == ADAPTER


def test_progress_counts_the_steps_of_all_environments(site: Site) -> None:
    site.mine("door", "room")
    seen: list[tuple[int, int]] = []
    site.train("door", "room", progress=lambda at, of: seen.append((at, of)))
    assert [at for at, _ in seen] == [1, 2, 3, 4]
    assert {of for _, of in seen} == {4}
