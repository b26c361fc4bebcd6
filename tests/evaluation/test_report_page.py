"""report.html: self-contained, complete, escaped, and the same bytes for the same inputs."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_parts import Finished, Page, changed

from taskmem.errors import UserError
from taskmem.evaluation.gate import Trial, decide
from taskmem.evaluation.report.page import write_report
from taskmem.evaluation.report.words import label, note, percent, percent_range, points, points_range
from taskmem.evaluation.streaming import GradedAnswer
from taskmem.loop.results import ARMS
from taskmem.records import Memory, Question, read_records, write_records

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=y> & \"quoted\""


def test_the_page_nests_and_refers_to_nothing_outside_itself(page: str) -> None:
    read = Page(page)
    assert "://" not in page
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in read.tags}
    references = [v for _, a in read.tags for name, v in a.items() if name in ("src", "href", "srcset", "data")]
    assert references
    assert all((value or "").startswith("data:image/") for value in references)
    assert "url(" not in page
    assert "@import" not in page
    assert not [name for _, a in read.tags for name in a if name.startswith("on")]


def test_the_page_is_small(page: str) -> None:
    assert len(page.encode()) < 1_000_000


def test_the_same_inputs_give_the_same_bytes(finished: Finished, page: str, out: Path) -> None:
    assert finished.report(out) == page


def test_how_long_the_stages_took_does_not_change_the_page(finished: Finished, page: str, out: Path) -> None:
    assert finished.report(out, results=changed(finished.run.results, seconds={"arms/base": 9.0})) == page


def cells(measure: dict[str, Any]) -> list[str]:
    return [percent(measure["accuracy"]), percent_range(measure["ci95"]), *shares(measure)]


def shares(measure: dict[str, Any]) -> list[str]:
    return [percent(measure["coverage"]), percent(measure["precision"])]


def test_every_arm_and_every_measure_is_on_the_page(finished: Finished, page: str) -> None:
    rows = Page(page).rows
    for arm in ARMS:
        measured = finished.run.results["arms"][arm]
        rates = [percent(measured["format_rate"]), percent(measured["wrong_fact_rate"])]
        assert [label(arm) + note(arm), *cells(measured["overall"]), *cells(measured["on_task"]), *rates] in rows
        for m in measured["by_type"].values():
            accuracy, interval, *others = cells(m)
            assert [label(arm), f"{m['correct']} / {m['asked']}", f"{accuracy} {interval}", *others] in rows


def test_every_paired_difference_is_on_the_page(finished: Finished, page: str) -> None:
    rows = Page(page).rows
    for name, paired in finished.run.results["paired"].items():
        arm, other = name.split("-")
        shown = [f"{points(d['mean'])} {points_range(d['ci95'])}" for d in (paired["overall"], paired["on_task"])]
        assert [f"{label(arm)} − {label(other)}", *shown] in rows


def test_the_arms_keep_the_order_of_the_results(finished: Finished, page: str) -> None:
    table = page[page.index('<table class="results') :]
    places = [table.index(f"</i>{label(arm)}<") for arm in ARMS]
    assert places == sorted(places)


def with_differences(finished: Finished, task: tuple[float, float], all_: tuple[float, float]) -> dict[str, Any]:
    paired = {name: dict(p) for name, p in finished.run.results["paired"].items()}
    paired["phase_two-phase_one"] = {
        "overall": {"mean": sum(all_) / 2, "ci95": list(all_)},
        "on_task": {"mean": sum(task) / 2, "ci95": list(task)},
    }
    return changed(finished.run.results, paired=paired)


def headline(text: str) -> str:
    return re.sub(r"<.*?>", "", text[text.index("<h1>") : text.index("</h1>")])


def test_the_headline_claims_nothing_where_the_interval_holds_zero(finished: Finished, out: Path) -> None:
    unsure = finished.report(out, results=with_differences(finished, (-0.1, 0.3), (-0.1, 0.1)))
    assert "Phase Two makes no certain difference (+10.0 points) on its own task" in headline(unsure)


def test_the_headline_says_what_the_focus_cost_over_all(finished: Finished, out: Path) -> None:
    costly = finished.report(out, results=with_differences(finished, (0.1, 0.3), (-0.12, -0.04)))
    assert "Phase Two adds 20.0 points on its own task, object, and costs 8.0 points over all." in headline(costly)


def test_every_chart_has_a_title_and_a_description(page: str) -> None:
    read = Page(page)
    assert read.count("svg") == 2 + 5 + 3 + 3
    assert read.count("svg") == read.count("desc") == read.count("title") - 1
    assert all(a["role"] == "img" for tag, a in read.tags if tag == "svg")


def test_every_table_has_a_caption_and_every_frame_a_text(page: str) -> None:
    read = Page(page)
    assert read.count("table") == read.count("caption")
    images = [a for tag, a in read.tags if tag == "img"]
    assert len(images) == 2 * read.count("article")
    assert all(a["alt"] for a in images)


def test_the_questions_of_the_feedback_are_quoted_without_answers(finished: Finished, page: str) -> None:
    assert finished.run.feedback
    for question in finished.run.feedback:
        assert f"<q>{question.text}</q>" in page


def test_without_a_verdict_the_page_says_so(page: str) -> None:
    assert "No verdict was given" in page


RATE = {"count": 12, "of": 15, "share": 0.8}
VERDICT = {
    "schema_version": 1,
    "environment": "object",
    "promote": False,
    "reasons": ["room lost <b>too much</b>"],
    "seed": 7,
    "win_test": {"wins": 52, "p_value": 0.0123456, "passed": True},
    "coverage": {
        "door": {"champion": RATE, "fall": 0.5, "passed": False},
        "room": {"champion": RATE, "fall": None, "note": [1, 2]},
    },
    "unscored": {"contexts": RATE, "reason": {"why": {"not": "known"}}},
    "nothing": {},
}


def test_a_verdict_is_shown_with_its_reasons_and_whatever_else_it_holds(finished: Finished, out: Path) -> None:
    read = Page(finished.report(out, verdict=VERDICT))
    assert "✗ Not promoted: the adapter of object" in read.words
    assert "room lost <b>too much</b>" in read.words
    for row in (
        ["seed", "7"],
        ["wins", "52"],
        ["p value", "0.01235"],
        ["passed", "✓ yes"],
        ["", "champion", "fall", "passed", "note"],
        ["door", "12 of 15", "0.5", "✗ no", ""],
        ["room", "12 of 15", "–", "", "1, 2"],
        ["contexts", "12 of 15"],
        ["reason", "why not known"],
    ):
        assert row in read.rows
    assert "schema" not in read.words


def test_a_promotion_says_so(finished: Finished, out: Path) -> None:
    text = finished.report(out, verdict={"promote": True})
    assert "✓ Promoted</p>" in text
    assert "No verdict was given" not in text


def test_the_gate_s_own_verdict_is_shown(finished: Finished, out: Path) -> None:
    gate = finished.profile.gate
    arms = {
        arm: [g.graded for g in read_records(finished.run.arms[arm] / "graded.jsonl", GradedAnswer)] for arm in ARMS
    }
    trial = Trial("object", (), arms["phase_one"], arms["phase_two"], {"object"}, set())
    verdict = decide(trial, gate, finished.profile.evaluation, seed=0)
    read = Page(finished.report(out, verdict=verdict.model_dump(mode="json")))
    assert not verdict.promote
    assert verdict.reasons
    assert all(reason in read.words for reason in verdict.reasons)
    for kind, bound in verdict.coverage.items():
        before, after = (f"{rate.count} of {rate.of}" for rate in (bound.champion, bound.challenger))
        assert [kind, before, after] in [row[:3] for row in read.rows]


def test_a_verdict_without_an_outcome_is_refused(finished: Finished, out: Path) -> None:
    with pytest.raises(UserError, match="verdict: promote: "):
        finished.report(out, verdict={"wins": 1})


def test_an_adapter_without_a_curve_is_named(finished: Finished, out: Path, tmp_path: Path) -> None:
    adapters = {**finished.run.adapters, "phase_two_random_pairs": tmp_path / "none"}
    text = finished.report(out, adapters=adapters)
    assert "No training curve was kept of Control: random." in text
    assert Page(text).count("svg") == 13
    none = finished.report(out, adapters={})
    assert "No training curve was kept." in none
    assert Page(none).count("svg") == 10


def hostile(finished: Finished, root: Path) -> dict[str, Any]:
    """Changes to the run after which every text from outside is hostile."""
    questions = [
        q.model_copy(update={"text": q.text + HOSTILE}) for q in read_records(finished.run.questions, Question)
    ]
    write_records(root / "questions.jsonl", questions)
    arms = {}
    for arm, folder in finished.run.arms.items():
        arms[arm] = root / arm
        memories = read_records(folder / "memories.jsonl", Memory)
        write_records(arms[arm] / "memories.jsonl", [m.model_copy(update={"text": HOSTILE}) for m in memories])
        graded = read_records(folder / "graded.jsonl", GradedAnswer)
        answers = [g.model_copy(update={"answer": HOSTILE, "correct": False}) for g in graded]
        write_records(arms[arm] / "graded.jsonl", answers)
    results = changed(finished.run.results, task=HOSTILE, profile=HOSTILE, commit=HOSTILE)
    results["arms"] = {
        arm: {**measured, "by_type": {HOSTILE: measured["overall"]}} for arm, measured in results["arms"].items()
    }
    recent = tuple(q.model_copy(update={"text": HOSTILE}) for q in finished.run.feedback)
    verdict = {"promote": True, "environment": HOSTILE, "reasons": [HOSTILE], HOSTILE: HOSTILE}
    return {
        "results": results,
        "arms": arms,
        "questions": root / "questions.jsonl",
        "feedback": recent,
        "verdict": verdict,
    }


def test_text_from_outside_is_escaped_wherever_it_stands(finished: Finished, out: Path, tmp_path: Path) -> None:
    text = finished.report(out, **hostile(finished, tmp_path / "hostile"))
    read = Page(text)
    assert "<script" not in text
    assert not [a for _, a in read.tags if "onerror" in a]
    assert all((a["src"] or "").startswith("data:image/png;base64,") for tag, a in read.tags if tag == "img")
    assert read.words.count(HOSTILE) > 20


def test_without_evidence_the_true_answers_own_words_are_marked(finished: Finished, out: Path) -> None:
    write_report(finished.run, finished.frames_of, None, out)
    marks = Page(out.read_text(encoding="utf-8")).marks
    answers = {q.answer for q in read_records(finished.run.questions, Question)}
    assert len(marks) > 10
    assert {text for _, text in marks[3:]} <= answers


@pytest.mark.parametrize("name", ["training.json", "validation.json"])
def test_a_missing_curve_of_phase_one_is_named(finished: Finished, out: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "phase_one"
    shutil.copytree(finished.run.phase_one, folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{folder / name}: cannot be read"):
        finished.report(out, phase_one=folder)
    assert not out.exists()


def test_a_training_log_without_steps_is_refused(finished: Finished, out: Path, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"trained_norm": 1}')
    with pytest.raises(UserError, match=r"training\.json: holds no 'steps'"):
        finished.report(out, adapters={"phase_two": tmp_path})


@pytest.mark.parametrize(
    ("field", "says"), [("arms", "arms: Field required"), ("task", "task: Field required"), ("paired", "paired: Field")]
)
def test_results_that_lack_a_field_are_refused(finished: Finished, out: Path, field: str, says: str) -> None:
    results = {name: value for name, value in finished.run.results.items() if name != field}
    with pytest.raises(UserError, match=f"results.json: {says}"):
        finished.report(out, results=results)


def test_results_without_the_arms_of_the_method_are_refused(finished: Finished, out: Path) -> None:
    arms = {name: arm for name, arm in finished.run.results["arms"].items() if name != "phase_two"}
    with pytest.raises(UserError, match=r"results.json: arms\.phase_two is missing"):
        finished.report(out, results=changed(finished.run.results, arms=arms))
    with pytest.raises(UserError, match=r"results.json: paired\.phase_one-base is missing"):
        finished.report(out, results=changed(finished.run.results, paired={}))


def test_an_arm_without_a_folder_or_with_a_gap_is_refused(finished: Finished, out: Path, tmp_path: Path) -> None:
    arms = dict(finished.run.arms)
    with pytest.raises(UserError, match=r"arm base: results\.json has it, but no folder was given"):
        finished.report(out, arms={name: folder for name, folder in arms.items() if name != "base"})
    shutil.copytree(arms["base"], tmp_path / "memories")
    kept = read_records(arms["base"] / "memories.jsonl", Memory)[1:]
    write_records(tmp_path / "memories" / "memories.jsonl", kept)
    with pytest.raises(UserError, match=r"memories\.jsonl: no memory of segment 0 of stream held_out-s0-000"):
        finished.report(out, arms={**arms, "base": tmp_path / "memories"})
    shutil.copytree(arms["base"], tmp_path / "graded")
    answered = read_records(arms["base"] / "graded.jsonl", GradedAnswer)[1:]
    write_records(tmp_path / "graded" / "graded.jsonl", answered)
    with pytest.raises(UserError, match=r"graded\.jsonl: no answer to held_out-s0-000\.000\.figure"):
        finished.report(out, arms={**arms, "base": tmp_path / "graded"})
