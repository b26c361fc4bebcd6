"""Candidates in an object store: a context is sampled once, over many nights and by many jobs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmem.cli import shipped_base
from taskmem.config import Profile, load_profile, override
from taskmem.errors import UserError
from taskmem.policy.grammar import completion_for
from taskmem.policy.protocols import Completion
from taskmem.policy.rollout_cache import CONTEXTS_AT_ONCE, build_rollouts
from taskmem.policy.transformers_policy import policy_digest
from taskmem.records import Candidate, Context, Rollouts, Segment, dump_record, read_records
from taskmem.stages.candidates import StoredRollouts, rollout_cache
from taskmem.stages.common import ROLLOUTS
from taskmem.stages.segmentation import segmentation
from taskmem.store import LocalStore
from taskmem.world.splits import render_split

POLICY, OTHER_POLICY = "a" * 64, "b" * 64
ONE_WAY, OTHER_WAY = "1" * 64, "2" * 64
CONTEXT = "stream-s0-000:3:0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def rollouts(context: str = CONTEXT, text: str = "a hat") -> Rollouts:
    candidate = Candidate(index=0, text=text, memory=text, think_tokens=0, memory_tokens=2)
    return Rollouts(context=context, stream="s", index=3, memories=(), candidates=(candidate,), policy=POLICY, seed=0)


def test_what_is_kept_there_is_there_for_every_job(store: LocalStore) -> None:
    one, other = (StoredRollouts(store, POLICY, ONE_WAY) for _ in range(2))
    assert one.get(CONTEXT) is None
    assert one.keep(rollouts()) == rollouts()
    assert other.get(CONTEXT) == rollouts()


def test_of_two_jobs_that_sample_a_context_at_once_both_go_on_with_the_first_one_s_candidates(
    store: LocalStore,
) -> None:
    one, other = (StoredRollouts(store, POLICY, ONE_WAY) for _ in range(2))
    one.keep(rollouts(text="first"))
    assert other.keep(rollouts(text="second")) == rollouts(text="first")
    assert one.get(CONTEXT) == rollouts(text="first")


@pytest.mark.parametrize(("policy", "sampling"), [(OTHER_POLICY, ONE_WAY), (POLICY, OTHER_WAY)])
def test_another_policy_and_another_way_of_sampling_have_candidates_of_their_own(
    store: LocalStore, policy: str, sampling: str
) -> None:
    one, other = StoredRollouts(store, POLICY, ONE_WAY), StoredRollouts(store, policy, sampling)
    one.keep(rollouts(text="one"))
    assert other.get(CONTEXT) is None
    other.keep(rollouts(text="other"))
    assert (one.get(CONTEXT), other.get(CONTEXT)) == (rollouts(text="one"), rollouts(text="other"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "Rollouts"),
        (b"{}", "Rollouts context: Field required"),
        (
            dump_record(rollouts("stream-s0-000:4:0123456789abcdef")).encode(),
            "holds the candidates of context stream-s0-000:4:",
        ),
    ],
)
def test_an_object_that_is_not_the_context_s_candidates_is_refused_by_its_key(
    store: LocalStore, data: bytes, said: str
) -> None:
    key = f"rollouts/{POLICY}/{ONE_WAY}/{CONTEXT.replace(':', '/')}"
    store.put_if_absent(key, data)
    with pytest.raises(UserError, match=f"^{key}: .*{said}"):
        StoredRollouts(store, POLICY, ONE_WAY).get(CONTEXT)


class Scribe:
    """Writes where it is, and counts the contexts it was asked more than one candidate for."""

    adapter, digest = "none", POLICY

    def __init__(self) -> None:
        self.sampled: list[str] = []

    def write(self, contexts: Sequence[Context], n: int, seed: int) -> list[list[Completion]]:
        if n > 1:
            self.sampled += [context.id for context in contexts]
        return [[self._written(context.current)] * n for context in contexts]

    @staticmethod
    def _written(segment: Segment) -> Completion:
        memory = f"{segment.stream} {segment.index}"
        return Completion(completion_for(memory), tokens=(1,), think_tokens=0, memory=memory, memory_tokens=2)


def stream(name: str, length: int) -> list[Segment]:
    return [
        Segment(
            stream=name,
            index=index,
            start_s=index * 10.0,
            end_s=index * 10.0 + 10,
            source=f"{name}.mp4",
            clip=f"clips/{name}/{index:06d}.mp4",
            fps=0.2,
            width=64,
            height=64,
            sha256=f"{index:064x}",
        )
        for index in range(length)
    ]


@dataclass
class Job:
    """A night's sampling, with a store in common with others."""

    profile: Profile
    store: LocalStore

    def run(self, segments: list[Segment]) -> tuple[list[Rollouts], list[str]]:
        """The rollouts, and the contexts that were sampled for them."""
        scribe, kept = Scribe(), StoredRollouts(self.store, POLICY, ONE_WAY)
        cached, _ = build_rollouts(scribe, segments, self.profile, 0, kept=kept)
        return cached, scribe.sampled


@pytest.fixture
def job(store: LocalStore) -> Job:
    return Job(load_profile("miniature"), store)


def test_the_second_night_samples_nothing(job: Job) -> None:
    film = stream("a", CONTEXTS_AT_ONCE + 3)
    first, sampled = job.run(film)
    assert sampled == [r.context for r in first]
    again, sampled = job.run(film)
    assert again == first
    assert sampled == []


def test_a_night_with_a_new_stream_samples_that_stream_alone(job: Job) -> None:
    old, _ = job.run(stream("a", 5))
    both, sampled = job.run([*stream("a", 5), *stream("b", 4)])
    assert sampled == [r.context for r in both if r.stream == "b"]
    assert [r for r in both if r.stream == "a"] == old
    assert len(both) == 9


def test_a_night_that_was_killed_goes_on_with_what_is_missing(job: Job) -> None:
    film = stream("a", 6)
    whole, _ = job.run(film)
    for lost in (whole[1], whole[4]):
        job.store.delete(f"rollouts/{POLICY}/{ONE_WAY}/{lost.context.replace(':', '/')}")
    assert job.run(film) == (whole, [whole[1].context, whole[4].context])
    assert len(list(job.store.list(""))) == 6


@dataclass(frozen=True)
class Site:
    """Two short streams, their candidates, and the store that holds these."""

    root: Path
    profile: Profile

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root / "store")

    def sample(self, out: str, profile: Profile | None = None, seed: int = 0) -> list[Rollouts]:
        policy, settings = shipped_base(), profile or self.profile
        rollout_cache(self.root / "film", policy, settings, seed, self.root / out, store=self.store)
        return read_records(self.root / out / ROLLOUTS, Rollouts)


MARK = "what no policy writes"


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """All stored candidates say what no policy writes, so that one can tell which of them come from the store."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("sampled")
    small = {"world": {"stream_segments": 3, "deployment": 2}, "mining": {"candidates": 2}}
    profile = override(load_profile("miniature"), small, "small")
    assert profile.world is not None
    render_split(root / "world", "deployment", profile.world, 0)
    segmentation(root / "world" / "videos", profile, root / "film")
    site = Site(root, profile)
    assert MARK not in marked(site.sample("first"))
    for key in site.store.list(""):
        stored = site.store.get(key)
        found = Rollouts.model_validate_json(stored.data)
        candidates = tuple(c.model_copy(update={"memory": MARK}) for c in found.candidates)
        changed = found.model_copy(update={"candidates": candidates})
        site.store.compare_and_swap(key, dump_record(changed).encode(), stored.etag)
    return site


@pytest.fixture
def site(tmp_path: Path, sampled: Site) -> Site:
    shutil.copytree(sampled.root, tmp_path, dirs_exist_ok=True)
    return replace(sampled, root=tmp_path)


def marked(cached: list[Rollouts]) -> set[str | None]:
    return {candidate.memory for rollouts in cached for candidate in rollouts.candidates}


def test_the_stage_keeps_candidates_by_policy_and_takes_them_from_there(site: Site) -> None:
    keys = list(site.store.list(""))
    assert len(keys) == 2 * 3
    assert {key.split("/")[1] for key in keys} == {policy_digest(shipped_base())}
    assert marked(site.sample("again")) == {MARK}
    assert list(site.store.list("")) == keys


@pytest.mark.parametrize(
    ("settings", "seed"),
    [
        ({}, 1),
        ({"mining": {"candidates": 3}}, 0),
        ({"policy": {"sampling": {"temperature": 0.5}}}, 0),
        ({"policy": {"instruction": "be brief"}}, 0),
    ],
)
def test_the_stage_samples_anew_what_would_be_sampled_otherwise(
    site: Site, settings: dict[str, Any], seed: int
) -> None:
    before = set(site.store.list(""))
    cached = site.sample("other", override(site.profile, settings, "other"), seed)
    assert MARK not in marked(cached)
    assert len(set(site.store.list("")) - before) == len(cached) == 2 * 3


def test_settings_that_decide_nothing_of_the_sampling_take_the_stored_candidates(site: Site) -> None:
    other = override(site.profile, {"phase_two": {"steps": 1}, "gate": {"least_wins": 31}}, "other")
    assert marked(site.sample("other", other)) == {MARK}


def test_without_a_store_everything_is_sampled_and_nothing_kept(tmp_path: Path, site: Site) -> None:
    before = {key: site.store.get(key) for key in site.store.list("")}
    rollout_cache(site.root / "film", shipped_base(), site.profile, 0, tmp_path / "alone")
    alone, first = (read_records(folder / ROLLOUTS, Rollouts) for folder in (tmp_path / "alone", site.root / "first"))
    assert alone == first
    assert {key: site.store.get(key) for key in site.store.list("")} == before
