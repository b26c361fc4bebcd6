"""The agent in this process: it remembers in order, answers from memory alone, and keeps each environment's feedback apart."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_parts import Reader, Scribe, event, question, segment, told

from taskmem.agent import Agent, LocalAgent, Served
from taskmem.agent.local import OPEN_LOGS
from taskmem.errors import UserError
from taskmem.feedback import EventConflictError, EventLog
from taskmem.policy.stream import by_stream, watch
from taskmem.records import Context, FeedbackEvent, read_records


@pytest.fixture
def events(tmp_path: Path) -> Path:
    return tmp_path / "out" / "events"


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def agent(events: Path, reader: Reader) -> Iterator[Agent]:
    with LocalAgent(Scribe(adapter="door@v3"), reader, window=3, seed=0, events=events) as started:
        yield started


def test_streams_are_remembered_side_by_side_as_one_who_watches_them_whole(agent: Agent) -> None:
    streams = {"a": [segment("a", i) for i in range(5)], "b": [segment("b", i) for i in range(3)]}
    expected, _ = watch(Scribe(adapter="door@v3"), streams, window=3, seed=0)
    remembered = [m for i in range(5) for m in agent.remember([s[i] for s in streams.values() if i < len(s)])]
    assert sorted(remembered, key=lambda m: (m.stream, m.index)) == expected


def test_memories_come_in_the_order_of_the_segments(agent: Agent) -> None:
    assert [m.stream for m in agent.remember([segment(name, 0) for name in ("c", "a", "b")])] == ["c", "a", "b"]


def test_streams_may_begin_and_pause_at_any_time(agent: Agent) -> None:
    agent.remember([segment("a", 7)])
    agent.remember([segment("b", 0)])
    (later,) = agent.remember([segment("a", 9)])
    assert later.text == "a9 after ['a7 after []']"


@pytest.mark.parametrize("index", [0, 1])
def test_a_segment_that_is_not_later_than_the_last_is_refused_and_nothing_is_remembered(
    agent: Agent, index: int
) -> None:
    agent.remember([segment("a", 1)])
    with pytest.raises(UserError, match=rf"^segment {index} of stream a: segment 1 was remembered before; give .*$"):
        agent.remember([segment("b", 0), segment("a", index)])
    (memory,) = agent.remember([segment("b", 0)])
    assert memory.text == "b0 after []"


def test_a_stream_that_comes_twice_in_one_call_is_refused_and_nothing_is_remembered(agent: Agent) -> None:
    with pytest.raises(UserError, match=r"^segment 1 of stream a: the stream comes twice in one call; give one .*$"):
        agent.remember([segment("a", 0), segment("a", 1)])
    assert [m.text for m in agent.remember([segment("a", 0)])] == ["a0 after []"]


def test_after_a_policy_that_failed_the_same_segments_can_be_given_again(events: Path) -> None:
    down: set[str] = set()

    def say(context: Context) -> str | None:
        if context.current.stream in down:
            raise ConnectionError
        return told(context)

    with LocalAgent(Scribe(say), Reader(), window=2, seed=0, events=events) as agent:
        agent.remember([segment("a", 0), segment("b", 0)])
        down.add("b")
        with pytest.raises(ConnectionError):
            agent.remember([segment("a", 1), segment("b", 1)])
        down.clear()
        memories = agent.remember([segment("a", 1), segment("b", 1)])
    assert [m.text for m in memories] == ["a1 after ['a0 after []']", "b1 after ['b0 after []']"]


def test_no_segments_are_no_work_for_the_policy(events: Path) -> None:
    scribe = Scribe()
    with LocalAgent(scribe, Reader(), window=2, seed=0, events=events) as agent:
        assert agent.remember([]) == []
    assert scribe.batches == []


def test_an_answer_rests_on_the_memories_of_its_stream_that_had_ended(events: Path, reader: Reader) -> None:
    broken = Scribe(lambda context: None if context.current.index == 1 else f"seen {context.current.index}")
    with LocalAgent(broken, reader, window=2, seed=0, events=events) as agent:
        for index in range(4):
            agent.remember([segment("a", index), segment("b", index)])
        answer = agent.answer(question(1, asked_at_s=30.0))
        assert (answer.text, answer.memories) == ("seen 0 | seen 2", ("a:0", "a:2"))
        assert agent.answer(question(1, asked_at_s=29.9)).memories == ("a:0",)


@pytest.mark.parametrize("changes", [{"stream": "never-seen"}, {"asked_at_s": 9.0}])
def test_without_a_memory_the_information_is_insufficient(agent: Agent, changes: dict[str, object]) -> None:
    agent.remember([segment("a", 0)])
    answer = agent.answer(question(1, **changes))
    assert (answer.text, answer.memories) == (None, ())


def test_the_true_answer_is_never_shown_to_the_answerer(agent: Agent, reader: Reader) -> None:
    agent.answer(question(1, answer="open", origin="environment"))
    assert [(q.answer, q.origin) for q in reader.asked] == [(None, "none")]


def test_feedback_is_kept_once(agent: Agent, events: Path) -> None:
    assert [agent.feedback(event(n)) for n in (1, 2, 1)] == [True, True, False]
    assert read_records(events / "door.jsonl", FeedbackEvent) == [event(1), event(2)]


def test_feedback_that_contradicts_what_is_kept_is_refused_and_the_rest_goes_on(agent: Agent, events: Path) -> None:
    agent.feedback(event(1))
    with pytest.raises(EventConflictError):
        agent.feedback(event(1, outcome="correct"))
    assert agent.feedback(event(2))
    assert read_records(events / "door.jsonl", FeedbackEvent) == [event(1), event(2)]


def test_no_two_environments_share_a_log(agent: Agent, events: Path) -> None:
    assert [agent.feedback(event(1, environment)) for environment in ("door", "room", "door")] == [True, True, False]
    assert sorted(path.name for path in events.glob("*.jsonl")) == ["door.jsonl", "room.jsonl"]
    assert read_records(events / "room.jsonl", FeedbackEvent) == [event(1, "room")]


def test_an_agent_that_starts_again_knows_the_feedback_it_has(events: Path) -> None:
    for new in (True, False):
        with LocalAgent(Scribe(), Reader(), window=2, seed=0, events=events) as agent:
            assert agent.feedback(event(1)) is new


def test_of_many_environments_only_some_logs_are_open_and_nothing_is_lost(agent: Agent, events: Path) -> None:
    names = [f"tenant-{number}" for number in range(OPEN_LOGS + 20)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        news = [agent.feedback(event(1, name)) for name in names]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2 * OPEN_LOGS
    assert not any(news)
    assert [read_records(events / f"{name}.jsonl", FeedbackEvent) for name in names] == [[event(1, n)] for n in names]


def test_a_log_that_somebody_else_writes_is_refused_until_it_is_free(agent: Agent, events: Path) -> None:
    with EventLog(events / "door.jsonl"), pytest.raises(UserError, match="another process is writing this log"):
        agent.feedback(event(1))
    assert agent.feedback(event(1))


def test_after_a_write_that_failed_the_same_event_can_be_given_again(agent: Agent, events: Path) -> None:
    agent.feedback(event(1))
    size = (events / "door.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        with pytest.raises(UserError, match="cannot keep the log"):
            agent.feedback(event(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert agent.feedback(event(2))
    assert read_records(events / "door.jsonl", FeedbackEvent) == [event(1), event(2)]


def test_a_ready_agent_says_what_it_serves(agent: Agent) -> None:
    assert agent.ready() == Served("d" * 64, "door@v3")


CALLS: dict[str, Callable[[Agent], object]] = {
    "ready": lambda agent: agent.ready(),
    "remember": lambda agent: agent.remember([segment("a", 5)]),
    "answer": lambda agent: agent.answer(question(1)),
    "feedback": lambda agent: agent.feedback(event(9)),
}


@pytest.mark.parametrize("call", CALLS)
def test_outside_its_block_it_does_nothing(events: Path, call: str) -> None:
    agent = LocalAgent(Scribe(), Reader(), window=2, seed=0, events=events)
    with pytest.raises(UserError, match="not started; use it inside its `with` block"):
        CALLS[call](agent)
    with agent:
        CALLS[call](agent)
    with pytest.raises(UserError, match="not started; use it inside its `with` block"):
        CALLS[call](agent)


def test_a_stopped_agent_leaves_its_logs_to_others(events: Path) -> None:
    with LocalAgent(Scribe(), Reader(), window=2, seed=0, events=events) as agent:
        agent.feedback(event(1))
    with EventLog(events / "door.jsonl") as log:
        assert not log.append(event(1))


def test_a_folder_that_cannot_hold_feedback_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    agent = LocalAgent(Scribe(), Reader(), window=2, seed=0, events=tmp_path / "file" / "events")
    with pytest.raises(UserError, match=r"events: cannot hold feedback logs \(.*\); give a writable folder$"), agent:
        pass


def test_grouped_segments_reach_the_policy_sorted_by_stream(events: Path) -> None:
    scribe = Scribe()
    streams = by_stream([segment(name, 0) for name in ("b", "c", "a")])
    with LocalAgent(scribe, Reader(), window=2, seed=0, events=events) as agent:
        agent.remember([streams[name][0] for name in ("c", "a", "b")])
    assert [[context.current.stream for context in batch] for batch in scribe.batches] == [["a", "b", "c"]]


def test_an_agent_whose_policy_is_elsewhere_needs_no_torch() -> None:
    code = "import sys, taskmem.agent; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
