"""The demo: the loop through Kubeflow's local runner gives what `taskmem loop` gives, and survives being killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from small_loop import COMMAND, Run, environment, taskmem

ARMS = ("phase_two", "phase_two_other_task", "phase_two_random_pairs")
BEFORE_THE_ARMS = (
    *("world", "segments phase_one", "segments deployment", "segments development", "segments held_out"),
    *("phase_one_gspo", "development", "choose the task", "deployment", "feedback_collection"),
    *("rollout_cache", "judge_scoring", "evaluate base", "evaluate task_prompt", "evaluate phase_one"),
)
OF_AN_ARM = ("collect", "mine", "adapt", "gate", "promote", "evaluate")
STAGES = (*BEFORE_THE_ARMS, *(f"{stage}/{arm}" for arm in ARMS for stage in OF_AN_ARM), "report", "lineage_record")
# the champion's pointer and the lineage repository are looked at every time
ALWAYS = (*(f"promote/{arm}" for arm in ARMS), "lineage_record")


def demo(out: Path, options: tuple[str, ...]) -> str:
    done = taskmem("demo", *options, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def said(output: str) -> dict[str, str]:
    """What was said of each stage: done or unchanged."""
    return dict(re.findall(r"^ +(\S.*?) +(done|unchanged)\b", output, re.MULTILINE))


def results(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return content


def log(out: Path, stage: str) -> Path:
    return out / "logs" / f"{stage.replace('/', '.').replace(' ', '-')}.log"


def killed(out: Path, options: tuple[str, ...], stage: str) -> None:
    """Run the demo until a stage has begun, then `kill -9` it and wait until its stage is gone, too."""
    log(out, stage).unlink(missing_ok=True)
    with (out.parent / f"{out.name}.log").open("w") as handle:
        command = [COMMAND, "demo", *options, "--out", out]
        process = subprocess.Popen(command, env=environment(), stdout=handle, stderr=handle)
        while not log(out, stage).exists():
            assert process.poll() is None, f"the demo ended before {stage} had begun"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    while stages_left(out):
        time.sleep(0.05)


def stages_left(out: Path) -> list[str]:
    """The command lines of processes that still work in `out`."""
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(out) in line and int(folder.name) != os.getpid():
            lines.append(line)
    return lines


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]) -> Run:
    out = tmp_path_factory.mktemp("shown") / "demo"
    return Run(out, demo(out, options), options)


def test_the_demo_has_the_results_of_the_loop_byte_for_byte(shown: Run, finished: Run) -> None:
    ours, loops = results(shown.out), results(finished.out)
    assert set(ours.pop("seconds")) == set(STAGES)
    del loops["seconds"]
    # the checkout may be worked on between the two
    assert {ours.pop("commit").removesuffix("-dirty"), loops.pop("commit").removesuffix("-dirty")} != {""}
    assert json.dumps(ours) == json.dumps(loops)


def test_every_stage_is_told_and_the_page_and_the_table_are_there(shown: Run) -> None:
    assert said(shown.output) == dict.fromkeys(STAGES, "done")
    assert "a control is never promoted" in " ".join(shown.output.split())
    for name in ("results.json", "report.html"):
        assert str(shown.out / name) in shown.output
    assert (shown.out / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_run_again_nothing_is_done_again(shown: Run) -> None:
    before = (shown.out / "results.json").read_bytes()
    again = said(demo(shown.out, shown.options))
    assert {stage for stage, word in again.items() if word == "done"} <= set(ALWAYS)
    assert set(again) == set(STAGES)
    assert results(shown.out)["arms"] == json.loads(before)["arms"]


@pytest.mark.slow
def test_killed_in_phase_one_and_in_an_arm_it_finishes_without_redoing_what_was_done(
    tmp_path: Path, shown: Run
) -> None:
    out = tmp_path / "demo"
    killed(out, shown.options, "phase_one_gspo")
    killed(out, shown.options, "adapt/phase_two")
    rest = said(demo(out, shown.options))
    assert set(rest) == set(STAGES)
    assert {"phase_one_gspo", "mine/phase_two"} <= {stage for stage, word in rest.items() if word == "unchanged"}
    assert rest["adapt/phase_two"] == "done"
    assert same(out, shown.out)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ALWAYS])
def test_killed_in_any_stage_it_finishes_without_redoing_what_was_done(tmp_path: Path, shown: Run, stage: str) -> None:
    out = tmp_path / "demo"
    shutil.copytree(shown.out, out)
    (entry,) = [path for path in (out / "cache").iterdir() if json.loads(path.read_text())["stage"] == stage]
    entry.unlink()
    killed(out, shown.options, stage)
    rest = said(demo(out, shown.options))
    # a stage whose output is the same leaves those after it unchanged; the copy's store has another path than the gate knows
    assert {name for name, word in rest.items() if word == "done"} <= {stage, *ALWAYS, *(f"gate/{arm}" for arm in ARMS)}
    assert same(out, shown.out)


def same(out: Path, other: Path) -> bool:
    ours, theirs = results(out), results(other)
    kept = [name for name in ours if name not in ("seconds", "commit")]
    pages = [(folder / "report.html").read_bytes() for folder in (out, other)]
    return [ours[name] for name in kept] == [theirs[name] for name in kept] and pages[0] == pages[1]
