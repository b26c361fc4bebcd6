"""One log per environment: each is collected as its own, and what belongs to another tenant is refused."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskmem.config import MiningSettings, load_profile
from taskmem.errors import UserError
from taskmem.feedback import Collection, EventLog, collect, collect_folder, log_path, read_collection, write_collection
from taskmem.files import sha256_bytes
from taskmem.records import FeedbackEvent


def event(number: int, environment: str = "shop", **changes: Any) -> FeedbackEvent:
    fields: dict[str, Any] = {
        "id": f"e{number}",
        "environment": environment,
        "source": sha256_bytes(str(number)),
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "question": f"q{number}",
        "stream": "street",
        "asked_at_s": float(number),
        "type": "colour",
        "text": f"Which colour was bag {number}?",
        "answer": None,
        "outcome": "incorrect",
        "consent": True,
    }
    return FeedbackEvent(**{**fields, **changes})


def write(path: Path, *events: FeedbackEvent) -> Path:
    with EventLog(path) as log:
        for one in events:
            log.append(one)
    return path


def ids(collection: Collection) -> dict[str, list[str]]:
    return {environment: [q.id for q in questions] for environment, questions in collection.questions.items()}


@pytest.fixture
def settings() -> MiningSettings:
    return load_profile("miniature").mining.model_copy(update={"recent_questions": 3})


def test_an_event_that_names_another_environment_is_listed_and_does_not_say_which(
    tmp_path: Path, settings: MiningSettings
) -> None:
    path = write(tmp_path / "shop.jsonl", event(1), event(2, "rival"), event(3))
    collection = collect(path, None, settings, environment="shop")
    assert ids(collection) == {"shop": ["q1", "q3"]}
    assert [(r.file, r.reason) for r in collection.refused] == [
        ("shop.jsonl:2", "event e2 names another environment than the log's")
    ]
    assert (collection.events, collection.watermark.lines) == (2, 3)
    write_collection(tmp_path / "out", collection)
    assert all("rival" not in p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_a_foreign_event_does_not_take_the_id_of_one_that_belongs_there(
    tmp_path: Path, settings: MiningSettings
) -> None:
    path = tmp_path / "shop.jsonl"
    foreign, own = event(1, "rival"), event(1)
    path.write_text(f"{foreign.model_dump_json()}\n{own.model_dump_json()}\n")
    assert ids(collect(path, None, settings, environment="shop")) == {"shop": ["q1"]}


def test_without_an_environment_a_log_may_hold_several(tmp_path: Path, settings: MiningSettings) -> None:
    path = write(tmp_path / "shop.jsonl", event(1), event(2, "home"))
    assert ids(collect(path, None, settings)) == {"home": ["q2"], "shop": ["q1"]}


def test_a_folder_of_logs_gives_what_one_log_of_all_events_gives(tmp_path: Path, settings: MiningSettings) -> None:
    environments = ("shop", "shop-2", "home")
    events = [event(n, environments[n * n % 3]) for n in range(20)]
    together = collect(write(tmp_path / "all.jsonl", *events), None, settings)
    for environment in environments:
        write(tmp_path / "logs" / f"{environment}.jsonl", *(e for e in events if e.environment == environment))
    apart = collect_folder(tmp_path / "logs", settings)
    assert (apart.questions, apart.sources, apart.refused) == (together.questions, together.sources, ())
    assert list(apart.questions) == list(together.questions)
    assert (apart.events, apart.watermark.lines) == (together.events, together.watermark.lines)


def test_tenants_may_use_the_same_event_ids(tmp_path: Path, settings: MiningSettings) -> None:
    for environment in ("shop", "home"):
        write(tmp_path / f"{environment}.jsonl", event(1, environment))
    assert ids(collect_folder(tmp_path, settings)) == {"home": ["q1"], "shop": ["q1"]}


def test_refusals_of_a_folder_name_the_log_and_come_in_order_of_environment(
    tmp_path: Path, settings: MiningSettings
) -> None:
    for environment in ("shop-2", "shop", "home"):
        write(tmp_path / f"{environment}.jsonl", event(1, environment, consent=False))
    assert [r.file for r in collect_folder(tmp_path, settings).refused] == [
        "home.jsonl:1",
        "shop.jsonl:1",
        "shop-2.jsonl:1",
    ]


def test_the_watermark_of_a_folder_is_that_of_its_logs_one_after_the_other(
    tmp_path: Path, settings: MiningSettings
) -> None:
    logs = [write(tmp_path / f"{name}.jsonl", event(1, name), event(2, name)) for name in ("home", "shop")]
    with logs[1].open("a") as log:
        log.write("unfinished")
    whole = b"".join(path.read_bytes() for path in logs).removesuffix(b"unfinished")
    watermark = collect_folder(tmp_path, settings).watermark
    assert (watermark.offset, watermark.lines, watermark.sha256) == (len(whole), 4, sha256_bytes(whole))


def test_a_collection_of_a_folder_is_read_back_as_it_was_written(tmp_path: Path, settings: MiningSettings) -> None:
    for environment in ("shop", "home"):
        write(tmp_path / "logs" / f"{environment}.jsonl", *(event(n, environment) for n in range(5)))
    collection = collect_folder(tmp_path / "logs", settings)
    write_collection(tmp_path / "out", collection)
    assert read_collection(tmp_path / "out") == collection


def test_locks_and_hidden_files_are_no_logs(tmp_path: Path, settings: MiningSettings) -> None:
    write(tmp_path / "shop.jsonl", event(1))
    (tmp_path / ".shop.jsonl").write_text("{")
    assert (tmp_path / "shop.jsonl.lock").exists()
    collection = collect_folder(tmp_path, settings)
    assert (ids(collection), collection.refused) == ({"shop": ["q1"]}, ())


def test_a_folder_without_logs_is_the_users_mistake(tmp_path: Path, settings: MiningSettings) -> None:
    with pytest.raises(UserError, match=r"no event log \(\*\.jsonl\) there; give the folder"):
        collect_folder(tmp_path, settings)


def test_the_log_of_an_environment_is_named_after_it(tmp_path: Path) -> None:
    assert log_path(tmp_path, "shop.2_a-b") == tmp_path / "shop.2_a-b.jsonl"


@pytest.mark.parametrize("name", ["", ".", "..", "../shop", "a/b", "a\\b", ".hidden", "a b", "a\n", "é", "x" * 129])
def test_an_unsafe_name_has_no_log(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="not a safe name; use letters, digits") as caught:
        log_path(tmp_path, name)
    assert "\n" not in str(caught.value)
