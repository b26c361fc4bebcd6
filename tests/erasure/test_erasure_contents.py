"""Which records and files go: by kind and by field, never because a name happens to stand somewhere."""

import gzip
import json
from typing import Any

import pytest
from erasure_texts import CANARY, DOOR, NEIGHBOUR, OTHERS, OURS, USER, event, memory, rollouts

from taskmem.erasure.contents import Eraser
from taskmem.erasure.known import Known
from taskmem.erasure.target import Target
from taskmem.erasure.trees import clean_tree, gather
from taskmem.errors import UserError
from taskmem.feedback import to_question
from taskmem.records import dump_record


def eraser(name: str, *records: Any) -> Eraser:
    known = Known(Target.parse(name))
    gather(known, "records.jsonl", "".join(dump_record(record) + "\n" for record in records).encode())
    return Eraser(known)


def lines(*values: Any) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def left(found: Eraser, data: bytes, name: str = "x.jsonl", environment: str | None = None) -> list[Any]:
    kept = found.clean(name, data, environment).data
    assert kept is not None
    return [json.loads(line) for line in kept.splitlines()]


@pytest.mark.parametrize(
    "record",
    [
        {"stream": "s1", "index": 0},
        {"context": "s1:3:0123456789abcdef", "candidate": 0},
        {"id": "r1", "memories": ["s2:0", "s1:12"]},
        {"clip": "clips/s1/000000.mp4"},
        {"source": "inbox/s1.mkv"},
        {"file": "s1.mp4", "reason": "broken"},
        {"deep": [{"er": {"stream": "s1"}}]},
    ],
)
def test_a_record_of_the_stream_goes(record: dict[str, Any]) -> None:
    assert left(eraser("s1"), lines(record, {"stream": "s2"})) == [{"stream": "s2"}]


@pytest.mark.parametrize(
    "record",
    [
        {"stream": "s10", "index": 0},
        {"stream": "s1.b"},
        {"environment": "s1", "type": "s1", "stream": "s2"},
        {"context": "s10:3:0123456789abcdef"},
        {"context": "s2:3:0123456789abcdef", "reason": "unlike s1"},
        {"text": "s1:3 was said", "stream": "s2"},
        {"file": "s1.jsonl:3", "reason": "no event"},
        {"source": "s1.b.mp4"},
        {"questions": ["s1"]},
    ],
)
def test_a_record_that_only_has_the_name_in_it_stays(record: dict[str, Any]) -> None:
    assert left(eraser("s1"), lines(record)) == [record]


def test_ids_of_its_questions_count_in_their_environment_alone() -> None:
    found = eraser(OURS, event("door", 1, OURS, USER), event("room", 2, OTHERS, USER))
    pairs = lines({"context": f"{OTHERS}:1:{'0' * 16}", "questions": ["q1"]}, {"context": "x:1:0", "questions": ["q2"]})
    assert len(left(found, pairs, environment="door")) == 1
    assert len(left(found, pairs, environment="room")) == 2
    assert len(left(found, pairs)) == 1


def test_a_question_that_somebody_else_asked_too_is_not_the_sources_alone() -> None:
    both = [event("door", 1, OURS, USER), event("door", 2, OURS, USER), event("door", 1, OURS, NEIGHBOUR, id="e9")]
    found = eraser(USER, *both)
    assert [found.asked(question, "door") for question in ("q1", "q2")] == [False, True]


def test_what_others_wrote_too_is_not_looked_for() -> None:
    same = "the very same words"
    records = [memory(OURS, 0).model_copy(update={"text": same}), memory(OTHERS, 0).model_copy(update={"text": same})]
    found = eraser(OURS, *records)
    assert found.clean("page.html", same.encode(), None).data is not None
    assert eraser(OURS, records[0]).clean("page.html", same.encode(), None).data is None


def test_a_record_that_quotes_the_target_goes_unless_somebody_else_wrote_it() -> None:
    text = str(memory(OURS, 0).text)
    found = eraser(OURS, memory(OURS, 0))
    said = {"environment": "door", "reason": f"it said: {text}"}
    judged = {"context": "s2:1:0", "reason": f"unlike {text}"}
    theirs = {"stream": "s2", "index": 1, "text": f"they say: {text}"}
    assert left(found, lines(said, judged, theirs)) == [theirs]


def test_records_of_its_own_wait_until_everything_known_by_text_has_gone() -> None:
    found = eraser(OURS, memory(OURS, 0))
    own, quoting = {"stream": OURS}, {"reason": memory(OURS, 0).text}
    first = found.clean("x.jsonl", lines(own, quoting), None, only_by_text=True)
    assert first.data == lines(own)
    assert first.by_text
    document = json.dumps({"segments": [{"stream": OURS, "text": memory(OURS, 0).text}]}).encode()
    assert found.clean("x.json", document, None, only_by_text=True).data == document
    assert found.clean(f"clips/{OURS}/0.mp4", b"x", None, only_by_text=True).data == b"x"


def test_a_document_is_pruned_and_keeps_its_shape() -> None:
    found = eraser(USER, event("door", 1, OURS, USER))
    document = {
        "sources": {USER: {"share": 1}, NEIGHBOUR: {"share": 2}},
        "pairs": [{"sources": [USER]}, {"sources": []}],
    }
    data = json.dumps(document, indent=2).encode() + b"\n"
    erased = found.clean("influence.json", data, None)
    assert erased.data is not None
    assert json.loads(erased.data) == {"sources": {NEIGHBOUR: {"share": 2}}, "pairs": [{"sources": []}]}
    assert erased.data.endswith(b"\n}\n")
    assert erased.records == 2


def test_a_document_without_it_keeps_its_bytes() -> None:
    data = b'{ "a" :1,\n\t"stream": "s2"}'
    assert eraser("s1", memory(OURS, 0)).clean("a.json", data, None).data is data


@pytest.mark.parametrize(
    ("name", "stays"),
    [
        ("report.html", False),
        ("stage.log", False),
        ("notes.txt", False),
        ("x.csv.gz", False),
        ("params.yaml", True),
        ("vocab.txt", True),
        ("weights.safetensors", True),
    ],
)
def test_a_page_or_log_that_names_the_stream_goes_and_settings_stay(name: str, stays: bool) -> None:
    text = b"done with cam-1, see there"
    found = eraser("cam-1").clean(name, gzip.compress(text) if name.endswith(".gz") else text, None)
    assert (found.data is not None) == stays


@pytest.mark.parametrize("text", ["cam-10", "acam-1", "x-cam-1", "cam-1_b", "cam-1-b"])
def test_a_page_that_names_a_similar_stream_stays(text: str) -> None:
    assert eraser("cam-1").clean("page.html", f"about {text}.".encode(), None).data is not None


def test_settings_that_quote_a_text_go_too() -> None:
    text = str(memory(OURS, 0).text)
    assert eraser(OURS, memory(OURS, 0)).clean("params.yaml", f"a: {text}".encode(), None).data is None


@pytest.mark.parametrize(
    "path",
    [
        "a/clips/s1/000000.mp4",
        "clips/s1/x",
        "videos/s1.mp4",
        "s1.MKV",
        "s1.srt",
        "s1.en.vtt",
        "s1.de-AT.srt",
        ".done/s1.json",
    ],
)
def test_files_of_the_stream_are_known_by_their_path(path: str) -> None:
    assert Target.parse("s1").owns(path)


@pytest.mark.parametrize(
    "path",
    ["clips/s10/0.mp4", "s1/x.mp4", "events/s1.jsonl", "s1.json", "s1.html", "environments/s1/a", "s1.b.mp4", "s1", ""],
)
def test_other_files_are_not(path: str) -> None:
    assert not Target.parse("s1").owns(path)


def test_a_video_whose_name_is_no_stream_name_is_known_too() -> None:
    assert Target.parse("my_film").owns("inbox/my film.mp4")


@pytest.mark.parametrize("name", ["", "../x", "a/b/c", "/b", "a/", "a b", "x" * 200, "-a", "A" * 63 + "!"])
def test_what_is_neither_stream_nor_source_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="neither STREAM, ENV/STREAM nor the hash of a source"):
        Target.parse(name)


def test_64_hex_digits_are_a_source() -> None:
    assert Target.parse(USER).kind == "source"
    assert Target.parse(USER[1:]).kind == "stream"


def test_an_archive_that_cannot_be_opened_is_said_and_stays() -> None:
    data = gzip.compress(b"x" * 99)[:-20]
    erased = eraser("s1").clean("a.gz", data, None)
    assert (erased.data, erased.sealed) == (data, True)


def test_lines_that_are_no_json_go_if_they_quote_or_name_it() -> None:
    found = eraser(OURS, memory(OURS, 0))
    data = b"garbage\n" + f"torn {memory(OURS, 0).text}\n".encode() + f"{OURS} torn\n".encode() + b"[1]\n\xff\xfe\n"
    erased = found.clean("x.jsonl", data, None)
    assert erased.data == b"garbage\n[1]\n\xff\xfe\n"


def test_rollouts_of_a_stream_are_known_in_every_candidate() -> None:
    found = eraser(OURS, rollouts(OURS, 1))
    for text in ("candidate", "earlier memory"):
        assert found.clean("page.html", f"it was: {text} of {CANARY} 1 1".encode(), None).data is None


def test_gradients_go_with_the_influence_they_are_explained_by() -> None:
    found = eraser(USER, event("door", 1, OURS, USER))
    told = json.dumps({"sources": {USER: {}, NEIGHBOUR: {}}}).encode()
    files = {"a/influence.json": told, "a/gradients.safetensors": b"x", "b/gradients.safetensors": b"x"}
    changed = dict(clean_tree({path: lambda data=data: data for path, data in files.items()}, found))  # type: ignore[misc]
    assert list(changed) == ["a/gradients.safetensors", "a/influence.json"]
    assert changed["a/gradients.safetensors"].data is None


def test_everything_the_first_event_says_is_known() -> None:
    first = event("door", *DOOR[0])
    known = Known(Target.parse(USER))
    gather(known, "door.jsonl", dump_record(first).encode())
    assert {first.text, first.answer, first.correction, *first.options} == set(known.texts)


def test_a_document_with_records_of_its_own_and_a_quotation_loses_the_quotation_first() -> None:
    found = eraser(OURS, memory(OURS, 0))
    own = [{"stream": OURS, "text": memory(OURS, 0).text}]
    data = json.dumps({"segments": own, "reason": memory(OURS, 0).text}).encode()
    first = found.clean("x.json", data, None, only_by_text=True).data
    assert first is not None
    assert json.loads(first) == {"segments": own, "reason": "erased"}
    last = found.clean("x.json", first, None).data
    assert last is not None
    assert json.loads(last) == {"segments": [], "reason": "erased"}


def test_the_sources_of_a_collection_lose_the_questions_of_a_stream_and_the_name_of_a_source() -> None:
    asked = [event("door", 1, OURS, USER), event("door", 2, OTHERS, USER), event("door", 2, OTHERS, NEIGHBOUR, id="e9")]
    data = json.dumps({"door": {"q1": [USER], "q2": [USER, NEIGHBOUR]}, "room": {"q1": [NEIGHBOUR]}}).encode()
    of_stream, of_user = (eraser(name, *asked).clean("sources.json", data, None).data for name in (OURS, USER))
    assert json.loads(of_stream or b"") == {"door": {"q2": [USER, NEIGHBOUR]}, "room": {"q1": [NEIGHBOUR]}}
    assert json.loads(of_user or b"") == {"door": {"q2": [NEIGHBOUR]}, "room": {"q1": [NEIGHBOUR]}}


def test_a_question_on_file_does_not_make_its_text_somebody_elses() -> None:
    asked = event("door", 1, OURS, USER)
    assert eraser(USER, asked, to_question(asked)).quotes(asked.text)


@pytest.mark.parametrize("name", ["sources.json", "a.json", "x.jsonl", "cache.json"])
@pytest.mark.parametrize(
    "value", [{"door": 3}, {"door": {"q": USER}}, {"environment": [1], "question": {}}, [[[]]], 7, None]
)
def test_what_is_no_file_of_ours_harms_nobody(name: str, value: Any) -> None:
    data = json.dumps(value).encode()
    for target in (OURS, USER):
        known = Known(Target.parse(target))
        gather(known, name, data)
        assert Eraser(known).clean(name, data, None).data is not None


def test_what_is_nested_too_deep_is_searched_as_a_whole() -> None:
    deep = b"[" * 900 + b"]" * 900
    about = b'{"a": ' + deep + b', "b": "about cam-1"}'
    assert eraser("cam-1").clean("x.jsonl", about, None).data is None
    assert eraser("cam-2").clean("x.jsonl", about, None).data == about
    known = Known(Target.parse("cam-1"))
    gather(known, "x.jsonl", about)
    assert known.texts == []


def test_a_stream_of_one_environment_is_another_than_that_of_all() -> None:
    one, all_ = Target.parse("door/s1"), Target.parse("s1")
    assert (one.kind, one.name, one.environment, one.title) == ("stream", "s1", "door", "door/s1")
    assert (all_.environment, all_.title) == (None, "s1")
    assert len({one.digest, all_.digest, Target.parse("shop/s1").digest}) == 3
    assert [one.concerns(name) for name in ("door", "shop", None)] == [True, False, False]
    assert not one.owns("clips/s1/000000.mp4")
