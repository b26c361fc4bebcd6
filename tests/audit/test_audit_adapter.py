"""The chain of an adapter: every link of an untouched one holds, and whatever is changed is found and named."""

from pathlib import Path

import pytest
from audit_parts import CANARY, Place, broken, changed, forge, objects_kept, one_byte_off, overwrite

from taskmem.audit.links import Chain
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.registry import champion
from taskmem.registry.champion import promotions
from taskmem.registry.objects import file_key, to_bytes, version_key
from taskmem.registry.versions import read_manifest

LINKS = [
    *("promotion log", "promotion", "verdict", "manifest"),
    *("adapter_config.json", "adapter_model.safetensors", "training.json"),
    *("tag", "run", "manifest in the lineage", "promotion in the lineage", "code", "image", "policy", "settings"),
    *("pairs", "judges", "feedback", "events.jsonl", "adapter_config.json in the lineage"),
    *("adapter_model.safetensors in the lineage", "training.json in the lineage", "influence"),
]
PLACE = "environments/door-night"


def facts(chain: Chain, name: str) -> dict[str, object]:
    link = chain.link(name)
    assert link is not None
    return dict(link.facts)


def line(chain: Chain, name: str) -> str:
    link = chain.link(name)
    assert link is not None
    assert not link.holds
    return link.line


@pytest.fixture(scope="module")
def whole(kept_place: Place, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return kept_place.audit("door@v1", tmp_path_factory.mktemp("whole"))


def test_every_link_of_an_untouched_adapter_holds_with_one_digest_on_both_sides(whole: Chain) -> None:
    assert [link.name for link in whole.links] == LINKS
    assert broken(whole) == []
    # another commit than the one that trained may record a night
    assert [link.name for link in whole.links if link.expected != link.found or not link.found] == ["code"]


def test_the_chain_tells_who_promoted_it_on_what_and_what_came_before_and_after(whole: Chain) -> None:
    told = facts(whole, "promotion")
    assert (told["by"], told["action"], told["time"]) == ("the night", "promote", "2026-03-02T12:30:00+00:00")
    assert (told["before"], told["after"]) == ("none", "v2")
    verdict = facts(whole, "verdict")
    assert (verdict["wins"], verdict["losses"], verdict["p_value"]) == (40, 2, 0.002)


def test_the_chain_tells_what_the_adapter_was_trained_on(whole: Chain) -> None:
    sources = ["1" * 64, "2" * 64, "3" * 64]
    assert facts(whole, "pairs") == {"pairs": 3, "contexts": 3, "questions": ["q0", "q1", "q2"], "sources": sources}
    assert facts(whole, "judges")["judges"] == [{"role": "helpfulness", "model": "judge/0", "prompt_sha256": "0" * 64}]
    feedback = facts(whole, "feedback")
    assert (feedback["count"], feedback["ids"]) == (5, ["q0", "q1", "q2", "q3", "q4"])
    events = facts(whole, "events.jsonl")
    assert (events["from"], events["to"]) == ("2026-03-01T12:30:00+00:00", "2026-03-01T12:34:00+00:00")
    influence = facts(whole, "influence")
    assert influence["leading"] == [{"source": s, "part": p} for s, p in zip(sources, (0.7, 0.4, -0.1), strict=True)]
    assert influence["against"] == ["3" * 64]
    assert (facts(whole, "settings")["profile"], facts(whole, "settings")["seed"]) == ("miniature", 1)


def test_what_users_wrote_is_shown_only_if_asked_for(place: Place, whole: Chain, tmp_path: Path) -> None:
    assert CANARY not in str(whole.document())
    shown = place.audit("door@v1", tmp_path, show_text=True)
    assert shown.texts == {f"q{number}": f"{CANARY} ({number})" for number in range(5)}


def test_an_adapter_that_was_never_champion_has_no_promotion_and_no_tag_and_its_chain_holds(
    place: Place, tmp_path: Path
) -> None:
    chain = place.audit("room@v2", tmp_path)
    assert broken(chain) == []
    absent = {"promotion", "verdict", "tag", "promotion in the lineage"}
    assert [link.name for link in chain.links] == [name for name in LINKS if name not in absent]
    assert chain.notes[0].startswith("room@v2 has never been champion")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "training.json"])
def test_one_byte_of_the_adapter_in_the_store_is_found(place: Place, tmp_path: Path, name: str) -> None:
    digest = read_manifest(place.store, "door", "v1").files.by_name()[name]
    key = file_key("door", digest)
    with objects_kept(place):
        overwrite(place, key, one_byte_off(place.store.get(key).data))
        chain = place.audit("door@v1", tmp_path)
    assert broken(chain) == [(name, "damaged")]
    assert line(chain, name).startswith(f"{name}: damaged: {key}: not the bytes that were published (the manifest says")


def test_a_file_of_the_store_that_its_disk_has_changed_is_found(place: Place, tmp_path: Path) -> None:
    manifest = read_manifest(place.store, "door", "v1")
    key = file_key("door", manifest.files.adapter_model)
    data = place.store.get(key).data
    (at,) = [p for p in (place.root / "store").rglob("*") if p.is_file() and data in p.read_bytes()]
    with changed(at, at.read_bytes().replace(data, one_byte_off(data))):
        chain = place.audit("door@v1", tmp_path)
    assert broken(chain) == [("adapter_model.safetensors", "damaged")]
    assert f"{key}: the object holds other bytes than were stored" in line(chain, "adapter_model.safetensors")


TRACKED = {
    "pairs": ("preferences/door-night/preferences.jsonl", "preferences/preferences.jsonl"),
    "judges": ("preferences/door-night/comparisons.jsonl", "preferences/comparisons.jsonl"),
    "events.jsonl": ("events/door.jsonl", "events.jsonl"),
    "adapter_model.safetensors in the lineage": (
        "adapters/door-night/adapter_model.safetensors",
        "adapter/adapter_model.safetensors",
    ),
    "feedback": ("feedback/door-night/questions/door.jsonl", "feedback/questions/door.jsonl"),
}


@pytest.mark.parametrize("name", TRACKED)
def test_one_byte_of_what_dvc_keeps_is_found(place: Place, tmp_path: Path, name: str) -> None:
    made, path = TRACKED[name]
    data = (place.root / "night2" / made).read_bytes()
    with changed(place.object_of(data), one_byte_off(data)):
        chain = place.audit("door@v2", tmp_path)
    assert broken(chain) == [(name, "damaged")]
    assert f"{PLACE}/{path} (files/md5/" in line(chain, name)
    assert "the object holds other bytes than its name says" in line(chain, name)


@pytest.mark.parametrize("name", TRACKED)
def test_an_object_that_is_gone_from_the_remote_is_found(place: Place, tmp_path: Path, name: str) -> None:
    made, path = TRACKED[name]
    data = (place.root / "night2" / made).read_bytes()
    with changed(place.object_of(data), None):
        chain = place.audit("door@v2", tmp_path)
    # without its list DVC fetches no file of a folder at all
    assert (name, "missing") in broken(chain)
    assert f"{PLACE}/{path} (files/md5/" in line(chain, name)
    assert "the object is not in the remote" in line(chain, name)


@pytest.mark.parametrize("what", ["manifest", "verdict", "file"])
def test_an_object_that_is_gone_from_the_store_is_found(place: Place, tmp_path: Path, what: str) -> None:
    pointer, manifest = champion(place.store, "door"), read_manifest(place.store, "door", "v2")
    assert pointer is not None
    keys = {
        "manifest": version_key("door", "v2"),
        "verdict": f"registry/door/verdicts/{pointer.verdict}",
        "file": file_key("door", manifest.files.training),
    }
    with objects_kept(place):
        place.store.delete(keys[what])
        chain = place.audit("door@v2", tmp_path)
    name = "training.json" if what == "file" else what
    assert broken(chain) == [(name, "missing")]
    assert keys[what] in line(chain, name)


def test_a_changed_manifest_is_found_and_the_lineage_s_copy_tells_the_rest(place: Place, tmp_path: Path) -> None:
    key, manifest = version_key("door", "v1"), read_manifest(place.store, "door", "v1")
    with objects_kept(place):
        overwrite(place, key, to_bytes(manifest.model_copy(update={"feedback_count": 4})))
        chain = place.audit("door@v1", tmp_path)
    assert broken(chain) == [("manifest", "damaged")]
    assert f"{key}: not the manifest that was published (the promotion says" in line(chain, "manifest")
    assert facts(chain, "pairs")["pairs"] == 3


def test_a_changed_entry_of_the_promotion_log_is_found(place: Place, tmp_path: Path) -> None:
    chain_ = promotions("door")
    digest, entry = next(iter(chain_.log(place.store).items()))
    with objects_kept(place):
        overwrite(place, chain_.entry_key(digest), to_bytes(entry.model_copy(update={"by": "somebody else"})))
        chain = place.audit("door@v2", tmp_path)
    assert ("promotion log", "damaged") in broken(chain)
    assert chain_.entry_key(digest) in line(chain, "promotion log")


def test_a_missing_entry_of_the_promotion_log_is_found(place: Place, tmp_path: Path) -> None:
    chain_ = promotions("door")
    digest = next(iter(chain_.log(place.store)))
    with objects_kept(place):
        place.store.delete(chain_.entry_key(digest))
        chain = place.audit("door@v2", tmp_path)
    assert ("promotion log", "missing") in broken(chain)


def test_a_champion_s_pointer_that_was_set_back_is_found(place: Place, tmp_path: Path) -> None:
    chain_ = promotions("door")
    digest, entry = next(iter(chain_.log(place.store).items()))
    with objects_kept(place):
        overwrite(place, chain_.key, to_bytes(chain_.head_of(entry, digest)))
        chain = place.audit("door@v2", tmp_path)
    assert broken(chain) == [("promotion", "missing")]
    assert "the log does not: an entry is gone, or the pointer was set back" in line(chain, "promotion")


def test_a_moved_tag_is_found(place: Place, tmp_path: Path) -> None:
    before, head = place.git("rev-parse", "door@v1^{commit}"), place.git("rev-parse", "main")
    with objects_kept(place):
        said = place.git("for-each-ref", "--format=%(contents)", "refs/tags/door@v1")
        place.git("tag", "-f", "-a", "-m", said, "door@v1", head)
        chain = place.audit("door@v1", tmp_path)
    assert broken(chain) == [("tag", "damaged")]
    told = f"moved: it stands on {head[:12]}, and commit {before[:12]} promotes the version"
    assert told in line(chain, "tag")


def test_a_tag_without_a_message_is_not_the_writer_s(place: Place, tmp_path: Path) -> None:
    with objects_kept(place):
        place.git("tag", "-f", "door@v1", place.git("rev-parse", "door@v1^{commit}"))
        chain = place.audit("door@v1", tmp_path)
    assert broken(chain) == [("tag", "damaged")]
    assert "not annotated" in line(chain, "tag")


def test_a_tag_whose_message_names_another_manifest_is_found(place: Place, tmp_path: Path) -> None:
    with objects_kept(place):
        said = place.git("for-each-ref", "--format=%(contents)", "refs/tags/door@v2")
        place.git("tag", "-f", "-a", "-m", said, "door@v1", place.git("rev-parse", "door@v1^{commit}"))
        chain = place.audit("door@v1", tmp_path)
    assert broken(chain) == [("tag", "damaged")]
    assert "its message names another manifest" in line(chain, "tag")


def test_a_deleted_tag_is_found(place: Place, tmp_path: Path) -> None:
    with objects_kept(place):
        place.git("tag", "-d", "door@v1")
        chain = place.audit("door@v1", tmp_path)
    assert broken(chain) == [("tag", "missing")]


FORGED = {
    "run.json": ("run", b'"seed": 2', b'"seed": 3'),
    f"{PLACE}/params.yaml": ("settings", b"steps: 6", b"steps: 7"),
    f"{PLACE}/manifest.json": ("manifest in the lineage", b'"feedback_count": 6', b'"feedback_count": 5'),
    f"{PLACE}/promotion.json": ("promotion in the lineage", b'"the night"', b'"somebody"'),
}


@pytest.mark.parametrize("path", FORGED)
def test_a_rewritten_history_is_found(place: Place, tmp_path: Path, path: str) -> None:
    name, old, new = FORGED[path]
    data = place.git("show", f"main:{path}").encode() + b"\n"
    assert old in data
    with objects_kept(place):
        forge(place, path, data.replace(old, new, 1))
        chain = place.audit("door@v2", tmp_path)
    assert broken(chain) == [(name, "damaged")]
    assert f"{path} of commit" in line(chain, name)


def test_a_record_that_was_given_the_id_of_its_new_content_does_not_fit_the_commit(
    place: Place, tmp_path: Path
) -> None:
    data = place.git("show", "main:run.json").encode() + b"\n"
    with objects_kept(place):
        forge(place, "run.json", data.replace(b'"commit": "', b'"commit": "f', 1))
        chain = place.audit("door@v2", tmp_path)
    assert broken(chain) == [("run", "damaged")]
    assert "its commit and the commit's Commit trailer differ" in line(chain, "run")


def test_an_adapter_that_the_lineage_has_not_recorded_is_missing_there(place: Place, tmp_path: Path) -> None:
    with objects_kept(place):
        place.git("update-ref", "refs/heads/main", place.git("rev-parse", "main^"))
        chain = place.audit("door@v2", tmp_path)
    assert broken(chain) == [("tag", "damaged"), ("run", "missing")]
    assert "and no commit promotes the version" in line(chain, "tag")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("door", r"adapter door: names no version; give it as environment@version"),
        ("door@v9", r"door@v9: neither in the registry nor in .*lineage.git; see `taskmem registry show door`"),
        ("cellar@v1", r"environment cellar: not in the registry; see `taskmem registry list`"),
        ("door@latest", r"version 'latest': not a safe name"),
        ("../door@v1", r"environment '../door': not a safe name"),
    ],
)
def test_a_name_that_is_no_adapter_is_a_mistake(place: Place, tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        place.audit(name, tmp_path)


def test_a_remote_that_is_gone_is_a_mistake_or_missing(place: Place, tmp_path: Path) -> None:
    aside = place.remote.with_name("aside")
    place.remote.rename(aside)
    try:
        chain = place.audit("door@v2", tmp_path)
    finally:
        aside.rename(place.remote)
    gone = ["pairs", "judges", "feedback", "events.jsonl", *LINKS[-4:]]
    assert broken(chain) == [(name, "missing") for name in gone]


def test_the_digest_of_an_entry_is_that_of_its_bytes(place: Place, whole: Chain) -> None:
    link = whole.link("promotion")
    assert link is not None
    (first, _) = promotions("door").log(place.store)
    assert link.found == first == sha256_bytes(place.store.get(promotions("door").entry_key(first)).data)
