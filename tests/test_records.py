"""The data contracts: what is written is read back, what is wrong is named, and a file is old or new but never half."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmem.errors import UserError
from taskmem.files import atomic_write, canonical_json, replace_directory, sha256_bytes, sha256_file, sha256_tree
from taskmem.records import (
    Candidate,
    Comparison,
    Context,
    ContextMemory,
    Face,
    FeedbackEvent,
    Judge,
    Judgement,
    Memory,
    Preference,
    Question,
    Record,
    Refusal,
    Rollouts,
    Segment,
    Subtitle,
    dump_record,
    iter_records,
    parse_line,
    read_json,
    read_records,
    write_json,
    write_records,
)

SHA = "a" * 64
JUDGE = Judge(role="helpfulness", model="judge", prompt_sha256=SHA)
SPAN = {"stream": "kitchen", "index": 3, "start_s": 30.0, "end_s": 40.0}
SEGMENT = {**SPAN, "source": "kitchen.mp4", "clip": "clips/kitchen/3.mp4", "fps": 2.0, "width": 64, "height": 48}


def segment(**changes: object) -> Segment:
    return Segment.model_validate({**SEGMENT, "sha256": SHA, **changes})


def examples() -> list[Record]:
    """One record of every kind that stands on a line of its own, with its optional fields set."""
    question = {"id": "q1", "stream": "kitchen", "asked_at_s": 12.5, "type": "object", "text": "What is it?"}
    return [
        segment(
            subtitles=(Subtitle(start_s=30.5, end_s=31.0, text="« Où ? »", speaker="face_2"),),
            faces=(Face(id="face_2", time_s=31.0, box=(0, 1, 2, 3)),),
        ),
        Refusal(file="a b.mp4", reason="not a video"),
        Memory(**SPAN, text=None, think_tokens=3, memory_tokens=0, policy=SHA, adapter="kitchen@v2"),
        Rollouts(
            context="c", stream="kitchen", index=3, policy=SHA, seed=-1,
            memories=(ContextMemory(index=2, text="before"),),
            candidates=(Candidate(index=0, text="raw", memory=None, think_tokens=1, memory_tokens=0),),
        ),
        Judgement(
            context="c", candidate=1, format_ok=True, within_budget=True, faithful=True, coherent=False,
            unscored=True, reason="timeout", judges=(JUDGE,),
        ),
        Comparison(context="c", a=0, b=1, questions=("q1",), first_order="a", second_order="tie", judge=JUDGE),
        Preference(
            context="c", chosen=1, rejected=0, path_length=2, token_difference=3, questions=("q1",), sources=(SHA,)
        ),
        Question(**question, environment="home", options=("cup", "pan"), answer="cup", origin="user_correction"),
        FeedbackEvent(
            id="e1", environment="home", source=SHA, time=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), question="q1",
            stream="kitchen", asked_at_s=12.5, type="object", text="What is it?", answer=None, memories=("kitchen:1",),
            outcome="unknown", correction="a cup", consent=True,
        ),
    ]  # fmt: skip


def names(record: Record) -> str:
    return type(record).__name__


@pytest.mark.parametrize("record", examples(), ids=names)
def test_a_record_is_read_back_as_it_was_written(tmp_path, record):
    path = tmp_path / "records.jsonl"
    write_records(path, [record, record])
    assert read_records(path, type(record)) == [record, record]


@pytest.mark.parametrize("record", examples(), ids=names)
def test_a_record_read_and_written_again_gives_the_same_bytes(record):
    line = dump_record(record)
    assert dump_record(parse_line(line, type(record), "here")) == line
    assert json.loads(line)["schema_version"] == 1


@given(text=st.text(min_size=1), start=st.floats(0, 1e6), length=st.floats(1e-3, 1e6))
def test_any_text_and_any_time_survive_the_round_trip(tmp_path_factory, text, start, length):
    written = segment(
        source=text, start_s=start, end_s=start + length, subtitles=(Subtitle(start_s=0, end_s=1, text=text),)
    )
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write_records(path, [written])
    assert read_records(path, Segment) == [written]


@pytest.mark.parametrize("record", examples(), ids=names)
def test_an_unknown_field_is_refused_in_every_record(record):
    document = {**json.loads(dump_record(record)), "extra": 1}
    with pytest.raises(UserError, match=r"f\.jsonl:7: \w+ extra: Extra inputs are not permitted"):
        parse_line(json.dumps(document), type(record), "f.jsonl:7")


@pytest.mark.parametrize("record", examples(), ids=names)
def test_a_missing_field_is_named_in_every_record(record):
    document = json.loads(dump_record(record))
    needed = [name for name, field in type(record).model_fields.items() if field.is_required()]
    assert needed
    for name in needed:
        rest = {key: value for key, value in document.items() if key != name}
        with pytest.raises(UserError, match=rf"f\.jsonl:7: \w+ {name}: Field required"):
            parse_line(json.dumps(rest), type(record), "f.jsonl:7")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_s", math.nan),
        ("end_s", math.inf),
        ("fps", math.nan),
        ("fps", 0),
        ("index", -1),
        ("index", 1.5),
        ("index", True),
        ("index", "1"),
        ("stream", "../etc"),
        ("stream", ".hidden"),
        ("stream", "a/b"),
        ("stream", ""),
        ("stream", "a" * 129),
        ("sha256", "A" * 64),
        ("sha256", "a" * 63),
        ("schema_version", 2),
        ("subtitles", None),
    ],
)
def test_a_bad_value_is_refused_and_its_field_named(field, value):
    line = json.dumps({**SEGMENT, "sha256": SHA, field: value})
    with pytest.raises(UserError, match=rf"^f\.jsonl:7: Segment {field}"):
        parse_line(line, Segment, "f.jsonl:7")


@pytest.mark.parametrize("clip", ["", "/etc/passwd", "../x.mp4", "clips/../../x.mp4", "clips/..", "clips\\..\\x.mp4"])
def test_a_clip_outside_its_folder_is_refused(clip):
    with pytest.raises(UserError, match=r"f\.jsonl:7: Segment clip: .*stays inside its folder"):
        parse_line(json.dumps({**SEGMENT, "sha256": SHA, "clip": clip}), Segment, "f.jsonl:7")


@pytest.mark.parametrize("clip", ["a.mp4", "clips/kitchen/3.mp4", "clips/a..b/3.mp4"])
def test_a_clip_inside_its_folder_is_accepted(clip):
    assert segment(clip=clip).clip == clip


@pytest.mark.parametrize("end", [30.0, 29.0])
def test_a_segment_must_end_after_it_starts(end):
    with pytest.raises(UserError, match="end_s must be later than start_s"):
        parse_line(json.dumps({**SEGMENT, "sha256": SHA, "end_s": end}), Segment, "f.jsonl:7")


def test_a_bad_field_inside_a_list_is_named_by_its_place():
    line = json.dumps({**SEGMENT, "sha256": SHA, "subtitles": [{"start_s": 0, "end_s": 1, "text": ""}]})
    with pytest.raises(UserError, match=r"Segment subtitles\.0\.text"):
        parse_line(line, Segment, "f.jsonl:7")


def test_a_time_without_a_zone_is_refused():
    event = json.loads(dump_record(examples()[-1]))
    with pytest.raises(UserError, match="FeedbackEvent time"):
        parse_line(json.dumps({**event, "time": "2026-01-02T03:04:05"}), FeedbackEvent, "f.jsonl:7")


def test_the_first_bad_line_of_a_file_is_named_by_its_number(tmp_path):
    path = tmp_path / "segments.jsonl"
    good = dump_record(segment())
    path.write_text(f"{good}\n\n{good}\n{{broken\n", encoding="utf-8")
    records = iter_records(path, Segment)
    assert [next(records), next(records)] == [segment(), segment()]
    with pytest.raises(UserError, match=rf"{path}:4: Segment the line: Invalid JSON"):
        next(records)


def test_a_missing_file_and_a_file_that_is_not_utf8_are_user_errors(tmp_path):
    path = tmp_path / "segments.jsonl"
    with pytest.raises(
        UserError,
        match=r"segments\.jsonl: cannot be read \(No such file or directory\); it should hold Segment records",
    ):
        read_records(path, Segment)
    path.write_bytes(b'{"stream": "\xff"}\n')
    with pytest.raises(UserError, match=r"segments\.jsonl:1: not UTF-8 at byte 12 of the line"):
        read_records(path, Segment)


def test_nan_is_refused_when_written_too(tmp_path):
    path = tmp_path / "value.json"
    bad = segment().model_copy(update={"start_s": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_records(path, [bad])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": math.nan})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([math.inf])
    assert list(tmp_path.iterdir()) == []


def test_a_record_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        segment().index = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("first", "second", "winner", "loser"),
    [
        ("a", "a", 4, 7),
        ("b", "b", 7, 4),
        ("a", "b", None, None),
        ("b", "a", None, None),
        ("a", "tie", None, None),
        ("tie", "b", None, None),
        ("tie", "tie", None, None),
    ],
)
def test_a_comparison_has_a_winner_only_if_both_orders_name_it(first, second, winner, loser):
    each = Comparison(context="c", a=4, b=7, questions=(), first_order=first, second_order=second, judge=JUDGE)
    assert (each.agreed, each.winner, each.loser) == (winner is not None, winner, loser)


def test_quality_is_good_only_if_every_verdict_is_given_and_positive():
    fields = ("format_ok", "within_budget", "faithful", "coherent", "non_redundant")
    good = Judgement.model_validate({"context": "c", "candidate": 0, **dict.fromkeys(fields, True)})
    assert good.quality_ok
    assert not good.model_copy(update={"unscored": True}).quality_ok
    for field in fields:
        assert not good.model_copy(update={field: False}).quality_ok
        assert not good.model_copy(update={field: None}).quality_ok


def context(**changes: object) -> Context:
    segments = (segment(index=1, sha256="d" * 64), segment(index=2, sha256="b" * 64), segment())
    fields = {"segments": segments, "memories": (ContextMemory(index=2, text="before"),), "task": None, **changes}
    return Context.model_validate(fields)


def test_a_contexts_id_depends_on_its_content_and_not_on_where_its_files_are():
    moved = context(
        segments=(
            segment(index=1, sha256="d" * 64),
            segment(index=2, sha256="b" * 64, clip="elsewhere/2.mp4"),
            segment(clip="3.mp4", source="x.mkv"),
        )
    )
    assert moved.id == context().id
    assert context().id.startswith("kitchen:3:")
    assert len(context().id) == len("kitchen:3:") + 16


@pytest.mark.parametrize(
    "change",
    [
        {"segments": (*context().segments[:2], segment(sha256="c" * 64))},
        {"segments": (context().segments[0], segment(index=2, sha256="c" * 64), segment())},
        {"segments": context().segments[1:]},
        {"memories": ()},
        {"memories": (ContextMemory(index=2, text="before."),)},
        {"memories": (ContextMemory(index=1, text="before"),)},
        {"task": "objects"},
    ],
)
def test_a_contexts_id_changes_with_its_content(change):
    assert context(**change).id != context().id


@pytest.mark.parametrize("index", [0, 3, 4])
def test_a_preceding_memory_belongs_to_an_earlier_segment_of_the_window(index):
    with pytest.raises(ValueError, match="must belong to an earlier segment"):
        context(memories=(ContextMemory(index=index, text="before"),))


def test_a_context_needs_a_current_segment():
    with pytest.raises(ValueError, match="segments"):
        Context(segments=())
    assert context().current == segment()


def test_a_question_without_its_answer_keeps_everything_else():
    question = next(record for record in examples() if isinstance(record, Question))
    bare = question.without_answer()
    assert (bare.answer, bare.origin) == (None, "none")
    assert question.model_copy(update={"answer": None, "origin": "none"}) == bare
    assert question.answer == "cup"


def test_json_is_read_back_as_it_was_written(tmp_path):
    path = tmp_path / "a" / "value.json"
    write_json(path, {"b": [1, 2.5, "é"], "a": None})
    assert read_json(path) == {"b": [1, 2.5, "é"], "a": None}
    assert path.read_text(encoding="utf-8").endswith("}\n")


def test_json_that_cannot_be_read_is_a_user_error(tmp_path):
    path = tmp_path / "value.json"
    with pytest.raises(UserError, match="No such file"):
        read_json(path)
    path.write_text("{\n  broken")
    with pytest.raises(UserError, match=r"not valid JSON .*line 2"):
        read_json(path)


def test_an_atomic_write_makes_folders_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "deep" / "er" / "file.bin"
    atomic_write(path, b"old")
    atomic_write(path, "neü")
    assert path.read_bytes() == "neü".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_in_the_middle_keeps_the_old_bytes_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    atomic_write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_records_that_fail_in_the_middle_keep_the_old_file(tmp_path):
    path = tmp_path / "segments.jsonl"
    write_records(path, [segment()])

    def interrupted():
        yield segment(index=4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, interrupted())
    assert read_records(path, Segment) == [segment()]
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_over_a_folder_fails_and_leaves_nothing_else(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        atomic_write(tmp_path / "taken", b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_a_finished_folder_replaces_an_older_one(tmp_path):
    for name in ("old", "new"):
        atomic_write(tmp_path / name / name, name)
    replace_directory(tmp_path / "new", tmp_path / "old")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["old", "old/new"]


def test_digests_are_sha256():
    assert sha256_bytes("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_bytes(b"abc") == sha256_bytes("abc")


def test_a_files_digest_is_that_of_its_bytes(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == sha256_bytes(b"abc")


def test_a_trees_digest_depends_on_names_and_contents_and_not_on_its_place(tmp_path):
    def tree(root: str, files: dict[str, str]) -> Path:
        for name, text in files.items():
            atomic_write(tmp_path / root / name, text)
        return tmp_path / root

    first = sha256_tree(tree("one", {"a": "1", "b/c": "2"}))
    assert sha256_tree(tree("two", {"b/c": "2", "a": "1"})) == first
    assert sha256_tree(tree("three", {"a": "1", "b/d": "2"})) != first
    assert sha256_tree(tree("four", {"a": "1", "b/c": "3"})) != first
    assert sha256_tree(tmp_path / "three", [tmp_path / "three" / "a"]) == sha256_tree(tree("five", {"a": "1"}))


@given(st.dictionaries(st.text(), st.integers(), min_size=1))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value):
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value
