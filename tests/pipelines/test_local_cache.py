"""A stage is run again if its code or the content of its inputs changed, and only then."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kfp.dsl import Artifact
from kfp.pipeline_spec import pipeline_spec_pb2
from local_parts import one_script, ordered, retried_script, run, started, two_stages

import pipelines
import taskmem
from pipelines.local.cache import Cache
from pipelines.local.run import Finished

BOTH_DONE = {"double": "done", "Count": "done"}
BOTH_UNCHANGED = {"double": "unchanged", "Count": "unchanged"}


def finished(out: Path, text: Path, **arguments: int) -> tuple[Finished, dict[str, str]]:
    done = run(two_stages, out, text=str(text), **arguments)
    assert done.finished is not None, done.error
    return done.finished, done.said


def made(result: Finished) -> Path:
    return Path(result.stages["double"].outputs["made"].path)


def test_the_same_again_is_unchanged_with_the_same_outputs_metadata_and_seconds(text: Path, out: Path) -> None:
    first, said = finished(out, text)
    assert said == BOTH_DONE
    again, said = finished(out, text)
    assert said == BOTH_UNCHANGED
    assert again.outputs == first.outputs == {"Output": 10}
    assert again.seconds == first.seconds
    assert made(again) == made(first)
    assert again.stages["double"].outputs["measured"].metadata == {"characters": 10.0}
    assert [stage.unchanged for stage in again.stages.values()] == [True, True]


def test_the_same_content_in_another_place_is_unchanged(text: Path, out: Path) -> None:
    finished(out, text)
    moved = text.with_name("moved.txt")
    text.rename(moved)
    os.utime(moved, (0, 0))
    assert finished(out, moved)[1] == BOTH_UNCHANGED


def test_a_folder_that_was_moved_with_its_cache_is_unchanged(text: Path, out: Path) -> None:
    first, _ = finished(out, text)
    moved = out.with_name("moved")
    out.rename(moved)
    again, said = finished(moved, text)
    assert said == BOTH_UNCHANGED
    assert made(again) == moved / made(first).relative_to(out)
    assert (made(again) / "text.txt").read_text() == "hellohello"


def test_changed_content_is_seen_where_nothing_else_changed(text: Path, out: Path) -> None:
    finished(out, text)
    text.write_text("HELLO")
    result, said = finished(out, text)
    assert said == BOTH_DONE
    assert (made(result) / "text.txt").read_text() == "HELLOHELLO"


def test_a_changed_parameter_redoes_the_stage_that_takes_it_and_those_that_get_other_content(
    text: Path, out: Path
) -> None:
    finished(out, text)
    assert finished(out, text, times=2)[1] == {"double": "unchanged", "Count": "done"}
    result, said = finished(out, text, factor=3, times=2)
    assert said == BOTH_DONE
    assert result.outputs == {"Output": 15}


def tampered(folder: Path) -> None:
    (folder / "text.txt").write_text("somebody's")


def enlarged(folder: Path) -> None:
    (folder / "further.txt").touch()


@pytest.mark.parametrize("harm", [tampered, enlarged, shutil.rmtree])
def test_a_stage_whose_output_was_changed_is_redone_and_those_after_it_are_not(
    text: Path, out: Path, harm: Callable[[Path], None]
) -> None:
    harm(made(finished(out, text)[0]))
    result, said = finished(out, text)
    assert said == {"double": "done", "Count": "unchanged"}
    assert (made(result) / "text.txt").read_text() == "hellohello"


def test_a_stage_that_says_a_part_of_it_failed_is_tried_again(out: Path) -> None:
    script = 'touch "$made" "$made.failed"'
    first = run(one_script, out, script=script)
    assert first.finished is not None
    assert first.finished.stages["Script"].failed == 3
    assert "3 failed" in first.shown
    assert run(one_script, out, script=script).said == {"Script": "done"}


def test_a_stage_of_a_pipeline_that_wants_no_cache_is_always_run(out: Path) -> None:
    arguments = {"first": 'touch "$made"', "second": 'touch "$made"'}
    assert run(ordered, out, **arguments).said == {"First": "done", "Second": "done"}
    assert run(ordered, out, **arguments).said == {"First": "unchanged", "Second": "done"}


def test_what_the_last_finished_run_no_longer_stands_on_is_removed_when_the_next_one_starts(
    text: Path, out: Path
) -> None:
    old = made(finished(out, text)[0])
    script = run(one_script, out, script='touch "$made"').finished
    new = made(finished(out, text, factor=3)[0])
    assert old.exists()
    finished(out, text, factor=3)
    assert not old.exists()
    assert (new / "text.txt").read_text() == "hellohellohello"
    # another pipeline's results in the same folder are left alone
    assert script is not None
    assert Path(script.outputs["Output"].path).exists()


def test_a_failed_run_takes_nothing_away(text: Path, out: Path) -> None:
    old = made(finished(out, text)[0])
    run(two_stages, out, text=str(text.with_name("missing.txt")))
    assert run(retried_script, out, script="exit 2").error is not None
    assert old.exists()
    assert finished(out, text)[1] == BOTH_UNCHANGED


def key(cache: Cache, arguments: dict[str, object], *command: str, **environment: str) -> str:
    container = pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec(command=command)
    for name, value in environment.items():
        container.env.add(name=name, value=value)
    return cache.key("comp-a", container, arguments)


def test_the_key_is_made_of_what_decides_the_outputs_and_of_nothing_else(tmp_path: Path, text: Path) -> None:
    cache = Cache(tmp_path, "pipeline")
    copy = text.with_name("copy.txt")
    shutil.copyfile(text, copy)

    def of(path: Path, **metadata: object) -> Artifact:
        return Artifact(name=path.name, uri=str(path), metadata=metadata)

    base = key(cache, {"a": of(text, n=1.0), "b": 1}, "run", X="1")
    assert base == key(cache, {"b": 1, "a": of(copy, n=1.0)}, "run", X="1")
    others = [
        key(cache, {"a": of(text, n=2.0), "b": 1}, "run", X="1"),
        key(cache, {"a": of(text, n=1.0), "b": 2}, "run", X="1"),
        key(cache, {"a": of(text, n=1.0), "b": 1}, "walk", X="1"),
        key(cache, {"a": of(text, n=1.0), "b": 1}, "run", X="2"),
        key(cache, {"a": [of(text, n=1.0)], "b": 1}, "run", X="1"),
        key(cache, {"a": of(tmp_path / "missing", n=1.0), "b": 1}, "run", X="1"),
        key(cache, {"a": of(tmp_path, n=1.0), "b": 1}, "run", X="1"),
    ]
    assert len({base, *others}) == 8
    text.write_text("HELLO")
    assert base != key(cache, {"a": of(text, n=1.0), "b": 1}, "run", X="1")


def test_artifacts_elsewhere_are_known_by_their_address(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "pipeline")
    here, there = (Artifact(uri=f"s3://bucket/{name}") for name in ("here", "there"))
    assert key(cache, {"a": here}) == key(cache, {"a": here}) != key(cache, {"a": there})


def test_a_stage_is_redone_when_the_library_s_code_changed(tmp_path: Path, text: Path, out: Path) -> None:
    library = tmp_path / "library"
    for package in (taskmem, pipelines):
        folder = Path(package.__file__).parent
        shutil.copytree(folder, library / folder.name, ignore=shutil.ignore_patterns("__pycache__", "base"))

    def said() -> list[str]:
        with started("two_stages", out, {"text": str(text)}, library, cwd=tmp_path) as process:
            return [line.split()[1] for line in process.communicate(timeout=60)[0].splitlines()[1:]]

    assert [said(), said()] == [["done", "done"], ["unchanged", "unchanged"]]
    with (library / "taskmem" / "errors.py").open("a") as source:
        source.write("# changed\n")
    assert said() == ["done", "done"]


@pytest.mark.parametrize(
    ("content", "said"), [("{", "not valid JSON"), ("{}", "not an entry of this cache"), ("[]", "not an entry")]
)
def test_a_damaged_entry_is_named(text: Path, out: Path, content: str, said: str) -> None:
    finished(out, text)
    entry = next((out / "cache").glob("*.json"))
    entry.write_text(content)
    error = run(two_stages, out, text=str(text)).error
    assert str(error).startswith(f"{entry.resolve()}: {said}")
