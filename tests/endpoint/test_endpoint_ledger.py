"""The ledger equals the server's own count, also after kill -9, and nothing that was answered is paid twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import takewhile
from pathlib import Path

import pytest
from loopback import Act, Loopback, Said, Seen, call_settings, chat, words

from taskmem.endpoint.client import Endpoint
from taskmem.endpoint.ledger import LEDGER, SENT, Ledger, read_ledger
from taskmem.endpoint.purse import Charge
from taskmem.errors import UserError
from taskmem.files import sha256_bytes

HERE = Path(__file__).parent
REQUEST = sha256_bytes("a request")


def question(seen: Seen) -> str:
    return str(seen.body["messages"][0]["content"])


def slow_and_busy(seen: Seen) -> Act:
    """Every fourth question is sent away twice before it is answered, slowly."""
    number = int(question(seen).split()[1])
    if number % 4 == 0 and seen.again < 2:
        return Act({"error": {"message": "busy"}}, 429, {"Retry-After": "0.05"}, delay=0.05)
    return Act(chat({"said": f"answer {number}"}, 10 + number, 5), delay=0.15)


class AllAtOnce:
    """As `slow_and_busy`, but nobody is answered before 64 calls are in flight."""

    def __init__(self) -> None:
        self._meeting = threading.Barrier(64)

    def __call__(self, seen: Seen) -> Act:
        if seen.number < 64:
            self._meeting.wait(60)
        return slow_and_busy(seen)


class Remembering:
    """As `slow_and_busy`, by a server that keeps what it answered under the request's Idempotency-Key and bills it once."""

    def __init__(self) -> None:
        self.billed: Counter[str] = Counter()
        self._kept: dict[str, Act] = {}
        self._lock = threading.Lock()

    def __call__(self, seen: Seen) -> Act:
        key = seen.headers["idempotency-key"]
        act = slow_and_busy(seen)
        with self._lock:
            if key not in self._kept and act.status == 200:
                self.billed[question(seen)] += 1
                self._kept[key] = act
            return self._kept.get(key, act)


def start(server: Loopback, folder: Path, count: int = 128, workers: int = 64) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "judging_process.py"), server.url, str(folder), str(count), str(workers)]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_with_64_calls_in_flight_and_429s_the_ledger_is_the_servers_count(tmp_path: Path) -> None:
    with Loopback(AllAtOnce()) as server:
        process = start(server, tmp_path)
        said, _ = process.communicate(timeout=120)
    calls = list(read_ledger(tmp_path))
    assert process.returncode == 0
    assert said.split("\n")[:-1] == [f"answer {n}" for n in range(128)]
    assert server.most_in_flight == 64
    assert len(calls) == len(server.seen) == 128 + 2 * 32
    assert Counter(call.status for call in calls) == {200: 128, 429: 64}
    assert sum(call.charged_tokens for call in calls) == server.tokens


def killed_and_resumed(server: Loopback, folder: Path, answers: int) -> int:
    """Kill a process once the server has given so many answers, and run it again to its end; the requests before the kill."""
    process = start(server, folder)
    end = time.monotonic() + 30
    while len(server.answered) < answers and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # whoever is still being served is done before the count
    while server.in_flight and time.monotonic() < end:
        time.sleep(0.01)
    before = len(server.seen)
    resumed = start(server, folder)
    said, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert said.split("\n")[:-1] == [f"answer {n}" for n in range(128)]
    return before


@pytest.mark.parametrize("answers", [10, 100])
def test_a_server_that_knows_a_request_again_is_paid_once_for_each(tmp_path: Path, answers: int) -> None:
    behave = Remembering()
    with Loopback(behave) as server:
        killed_and_resumed(server, tmp_path, answers)
    assert behave.billed == Counter({f"question {n}": 1 for n in range(128)})


@pytest.mark.parametrize("answers", [10, 100])
def test_after_a_kill_nothing_that_was_answered_is_paid_twice(tmp_path: Path, answers: int) -> None:
    with Loopback(slow_and_busy) as server:
        before = killed_and_resumed(server, tmp_path, answers)
    calls = list(read_ledger(tmp_path))
    counted = [call for call in calls if call.counted]
    lost = {call.request for call in calls if call.outcome == "lost"}
    # those that died with the process are entered when the folder is opened again
    kept = {
        call.request for call in takewhile(lambda call: call.outcome != "lost", calls) if call.outcome == "answered"
    }
    assert answers - 64 <= len(kept) < 128
    assert kept.isdisjoint(seen.headers["idempotency-key"].rpartition("-")[0] for seen in server.seen[before:])
    assert 0 < len(lost) <= 64
    assert 0 < before < len(server.seen)
    # a line for every request that the server counted; one more only for what was noted and killed before it left
    theirs = Counter(seen.headers["idempotency-key"].rpartition("-")[0] for seen in server.seen)
    ours = Counter(call.request for call in counted)
    assert theirs - ours == Counter()
    assert set(ours - theirs) <= lost
    assert set((ours - theirs).values()) <= {1}
    assert sum(call.charged_tokens for call in calls) >= server.tokens
    paid = Counter(question(seen) for seen in server.answered)
    assert sum(times > 1 for times in paid.values()) <= len(lost)
    assert max(paid.values()) <= 2
    again = Counter(call.request for call in counted if call.outcome == "answered")
    assert set(again.values()) == {1}


def sent_and_gone(folder: Path) -> None:
    with Ledger(folder) as ledger:
        ledger.send("fidelity", "m", REQUEST, Charge(70, 9))


def test_a_call_that_was_on_its_way_when_the_process_died_is_charged_at_its_most(tmp_path: Path) -> None:
    sent_and_gone(tmp_path)
    with Ledger(tmp_path) as ledger:
        assert ledger.spent == Charge(70, 9)
    with Ledger(tmp_path) as ledger:
        assert ledger.spent == Charge(70, 9)
    (lost,) = read_ledger(tmp_path)
    assert (lost.outcome, lost.charged_tokens, lost.counted) == ("lost", 70, True)


@pytest.mark.parametrize("name", [LEDGER, SENT])
def test_a_line_that_was_written_half_is_cut_off(tmp_path: Path, name: str) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.settle(ledger.send("fidelity", "m", REQUEST, Charge(70, 9)), "answered", Charge(7, 1))
    with (tmp_path / name).open("a") as file:
        file.write('{"schema_version": 1, "id": "ha')
    with Ledger(tmp_path) as ledger:
        assert ledger.spent == Charge(7, 1)
        ledger.settle(ledger.send("fidelity", "m", REQUEST, Charge(70, 9)), "answered", Charge(8, 1))
    assert [call.charged_tokens for call in read_ledger(tmp_path)] == [7, 8]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.cached("fidelity", "m", REQUEST)
    (tmp_path / LEDGER).write_text('{"id": 1}\n')
    with pytest.raises(UserError, match=f"{LEDGER}:1: Call"):
        Ledger(tmp_path)
    # and the folder is free again
    (tmp_path / LEDGER).unlink()
    Ledger(tmp_path).close()


def test_an_answer_that_was_kept_but_not_settled_is_not_paid_again(tmp_path: Path) -> None:
    with Loopback(lambda _: Act(chat({"said": "yes"}))) as server:
        for _ in range(2):
            with Endpoint(call_settings(server.url), tmp_path, {}) as endpoint:
                assert endpoint.ask("fidelity", words("a"), Said).said == "yes"
            # as if the process had died between the two: the line is gone, the note is there
            lines = (tmp_path / LEDGER).read_text().splitlines(keepends=True)
            (tmp_path / LEDGER).write_text("".join(line for line in lines if '"answered"' not in line))
    assert len(server.seen) == 1
    with Ledger(tmp_path):
        assert [call.outcome for call in read_ledger(tmp_path)] == ["lost", "cached"]
