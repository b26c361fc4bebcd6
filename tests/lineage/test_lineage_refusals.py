"""What cannot be recorded is refused in one line, before anything is hashed or sent."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lineage_parts import ENDED, Night, Place, git, night, place

from pipelines.cli import demo
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.lineage.registered import head_entry, published
from taskmem.records import write_records
from taskmem.registry import promotion_log
from taskmem.store import LocalStore

ALONE = {"shop": ENDED["shop"]}


@pytest.fixture
def run(tmp_path: Path) -> Night:
    return night(place(tmp_path), ended=ALONE)


def refusal(run: Night) -> str:
    """What is said; nothing has been laid, hashed or sent, and the repository is as before."""
    before, heard = run.place.git("for-each-ref"), []
    with pytest.raises(UserError) as refused:
        run.record(note=heard.append)
    assert heard in ([], ["cloned"])
    assert run.place.git("for-each-ref") == before
    assert not Path(run.place.remote).exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_repository_that_holds_something_else_is_left_alone(run: Night) -> None:
    clone = run.root / "clone"
    git(run.root, "clone", "--quiet", str(run.place.lineage), str(clone))
    (clone / "code.py").write_text("print()\n")
    git(clone, "add", "code.py")
    git(clone, "-c", "user.name=Ada", "-c", "user.email=ada@test", "commit", "--quiet", "-m", "code")
    git(clone, "push", "--quiet", "origin", "HEAD:main")
    said = f"{run.place.lineage}: holds something else than lineage; give an empty repository"
    assert refusal(run) == said
    # also on a branch that is not the one we would write to
    run.place.git("symbolic-ref", "HEAD", "refs/heads/lineage")
    assert refusal(run) == said


def twice(run: Night) -> Night:
    other = run.root / "made" / "two" / "feedback"
    (other / "shop").mkdir(parents=True)
    return replace(run, artifacts={**run.artifacts, "feedback": [*run.artifacts["feedback"], other]})


def unknown(run: Night) -> Night:
    return replace(run, members={})


def empty(run: Night) -> Night:
    (run.root / "empty").mkdir()
    return replace(run, artifacts={**run.artifacts, "policy": [run.root / "empty"]})


def unregistered(run: Night) -> Night:
    return replace(run, place=Elsewhere(run.place.root, run.place.remote))


class Elsewhere(Place):
    """A place whose registry is not the one that the run used."""

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root / "another store")


def lost(run: Night) -> Night:
    (run.root / "events" / "shop.jsonl").unlink()
    return run


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            twice,
            "{root}/made/two/feedback/shop: {root}/made/one/feedback/shop is of that name too; give each adapter a name",
        ),
        (unknown, "{root}/made/one/feedback/shop: no environment of the run's shards; give the shards it was made for"),
        (empty, "{root}/empty: has no files, so it cannot be recorded; run the stage that writes it"),
        (unregistered, "shop@v1: not in the registry, which has no version of it; choose another"),
        (lost, "{root}/events/shop.jsonl: has no files, so it cannot be recorded; run the stage that writes it"),
    ],
)
def test_what_does_not_fit_together_is_named(run: Night, spoil: Callable[[Night], Night], said: str) -> None:
    assert refusal(spoil(run)).startswith(said.format(root=run.root))


@pytest.mark.parametrize("kind", ["events", "policy", "champion"])
@pytest.mark.parametrize("count", [0, 2])
def test_what_all_environments_use_is_there_once(run: Night, kind: str, count: int) -> None:
    run.run()
    with pytest.raises(
        UserError, match=f"^artifacts: {kind}: there must be one, as every environment of a run uses the"
    ):
        replace(run, artifacts={**run.artifacts, kind: [run.root / kind] * count}).run()


def test_every_kind_of_what_was_made_is_there(run: Night) -> None:
    run.run()
    with pytest.raises(UserError, match=r"^artifacts: adapters: missing; give the folder of each shard$"):
        replace(run, artifacts={k: v for k, v in run.artifacts.items() if k != "adapters"}).run()


def test_a_promotion_that_the_registry_does_not_have_is_refused(run: Night) -> None:
    store, (outcome,) = run.place.store, run.outcomes
    adapter, verdict = run.made("shop", "adapters"), run.made("shop", "verdicts")
    policy = run.run().document["artifacts"]["policy"][0]
    version = published(store, outcome, adapter, verdict, policy)
    assert version is not None
    assert version.promoted
    # of another policy, or with other bytes, it is another adapter
    missing = "^environment shop: promoted, but the registry has no version with the bytes of"
    with pytest.raises(UserError, match=missing):
        published(store, outcome, adapter, verdict, "f" * 64)
    (adapter / "training.json").write_text("{}")
    with pytest.raises(UserError, match=missing):
        published(store, outcome, adapter, verdict, policy)
    kept = outcome.model_copy(update={"status": "kept", "version": None})
    assert published(store, kept, adapter, verdict, policy) is None
    with pytest.raises(
        UserError, match=r"^shop@v1: promoted, but its environment's log in the registry does not have it"
    ):
        head_entry(run_store(run), outcome, version, None)


def run_store(run: Night) -> LocalStore:
    return LocalStore(run.root / "empty store")


def test_a_promotion_s_entry_is_the_one_on_its_verdict_else_the_one_that_made_it_champion(run: Night) -> None:
    store, (outcome,) = run.place.store, run.outcomes
    policy = run.run().document["artifacts"]["policy"][0]
    version = published(store, outcome, run.made("shop", "adapters"), run.made("shop", "verdicts"), policy)
    (entry,) = promotion_log(store, "shop")
    assert head_entry(store, outcome, version, entry.verdict) == entry
    assert head_entry(store, outcome, version, sha256_bytes("another verdict")) == entry
    assert head_entry(store, outcome.model_copy(update={"environment": "new"}), None, None) is None


def test_an_adapter_that_was_never_held_against_a_champion_was_never_published(run: Night) -> None:
    (outcome,) = run.outcomes
    assert published(run.place.store, outcome, run.made("shop", "adapters"), None, "a" * 64) is None
    assert published(run.place.store, outcome, None, run.made("shop", "verdicts"), "a" * 64) is None


@pytest.mark.parametrize("option", ["lineage", "remote"])
def test_the_demo_takes_no_credentials_in_a_url_for_its_logs_repeat_it(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError) as refused:
        demo(out=tmp_path / "demo", **{option: "https://ada:secret@git.test/x.git"})
    assert str(refused.value) == (
        f"--{option} https://git.test/x.git: logs would repeat the credentials in it; give them to git or AWS instead"
    )
    assert not (tmp_path / "demo").exists()


def test_a_run_whose_outcomes_are_damaged_names_the_line(run: Night) -> None:
    run.run()
    write_records(run.root / "record" / "outcomes.jsonl", [])
    (run.root / "record" / "outcomes.jsonl").write_text("{}\n")
    assert refusal(run).startswith(f"{run.root / 'record' / 'outcomes.jsonl'}:1: Outcome environment: Field required")
