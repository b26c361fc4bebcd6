"""What goes from a remote or a cache: each object once, in an order that a killed erasure can take up."""

import json
from pathlib import Path

import pytest
from erasure_texts import NEIGHBOUR, OTHERS, OURS, USER, event, memory

from taskmem.erasure.contents import Eraser
from taskmem.erasure.dvc_objects import DvcObjects, Pairs
from taskmem.erasure.known import Known
from taskmem.erasure.objects import FolderObjects
from taskmem.erasure.target import Target
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.records import dump_record


def remote(root: Path, *folders: dict[str, bytes]) -> DvcObjects:
    objects = DvcObjects(FolderObjects(root))
    for files in folders:
        objects.add_list({path: objects.add(data) for path, data in files.items()})
    return DvcObjects(FolderObjects(root))


def eraser(objects: DvcObjects, name: str = OURS) -> Eraser:
    known = Known(Target.parse(name))
    objects.gather(known)
    return Eraser(known)


def names(objects: DvcObjects, doomed: list[str]) -> list[str]:
    """The paths of objects, or "list"."""
    paths = {
        md5: path
        for folder in objects.names
        if folder.endswith(".dir")
        for path, md5 in objects.files_of(folder).items()
    }
    return [paths.get(name, "list") for name in doomed]


def test_quotations_go_first_and_the_lists_that_name_the_clips_last(tmp_path: Path) -> None:
    text = str(memory(OURS, 0).text)
    objects = remote(
        tmp_path,
        {f"clips/{OURS}/0.mp4": b"frames", f"clips/{OTHERS}/0.mp4": b"other frames"},
        {"memories.jsonl": dump_record(memory(OURS, 0)).encode(), "weights.safetensors": b"w"},
        {"page.html": text.encode(), "plain.html": b"nothing"},
    )
    found = objects.doomed(eraser(objects), Pairs())
    order = names(objects, found.objects)
    assert order[0] == "page.html"
    assert set(order[1:3]) == {f"clips/{OURS}/0.mp4", "memories.jsonl"}
    assert order[3:] == ["list"]
    assert (found.count.records, found.count.files) == (1, 4)


def test_bytes_that_are_somebody_elses_too_stay(tmp_path: Path) -> None:
    objects = remote(tmp_path, {f"clips/{OURS}/0.mp4": b"black", f"clips/{OTHERS}/0.mp4": b"black"})
    assert names(objects, objects.doomed(eraser(objects), Pairs()).objects) == ["list"]


def test_an_object_of_no_folder_is_known_by_its_records(tmp_path: Path) -> None:
    objects = DvcObjects(FolderObjects(tmp_path))
    ours = objects.add(dump_record(event("door", 1, OURS, USER)).encode() + b"\n")
    objects.add(dump_record(event("door", 2, OTHERS, NEIGHBOUR)).encode() + b"\n")
    again = DvcObjects(FolderObjects(tmp_path))
    assert again.doomed(eraser(again), Pairs()).objects == [ours]


def test_pairs_are_held_against_the_environment_that_their_summary_names(tmp_path: Path) -> None:
    def mined(environment: str) -> dict[str, bytes]:
        pair = {"context": f"{OTHERS}:1:{'0' * 16}", "questions": ["q1"], "sources": [], "about": environment}
        return {
            "preferences.jsonl": json.dumps(pair).encode(),
            "summary.json": json.dumps({"environment": environment}).encode(),
        }

    asked = {"door.jsonl": dump_record(event("door", 1, OURS, USER)).encode()}
    objects = remote(tmp_path, mined("door"), mined("room"), asked)
    pairs = Pairs()
    objects.doomed(eraser(objects), pairs)
    assert pairs.resting == {sha256_bytes(mined("door")["preferences.jsonl"])}
    assert pairs.seen == {sha256_bytes(mined(name)["preferences.jsonl"]) for name in ("door", "room")}


def test_a_list_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / f"{'c' * 30}.dir").write_bytes(b"{}x")
    objects = DvcObjects(FolderObjects(tmp_path))
    with pytest.raises(UserError, match=r"ab/c{30}\.dir: lists no folder's files; restore the object"):
        objects.gather(Known(Target.parse(OURS)))
