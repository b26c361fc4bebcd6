"""An export counts only if vLLM writes of it what transformers writes of the policy."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from plugin_parts import SIZE
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from taskmem.commands.export import export
from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.policy.export import export_policy
from taskmem.policy.exported import read_export
from taskmem.policy.stream import window_context
from taskmem.records import Segment, read_records
from taskmem.stages.common import footage
from taskmem.vllm_plugin.check import Reading, Sample, compare, greedy_check, serving_python
from taskmem.vllm_plugin.greedy import Answer, Written

Run = Callable[..., Any]


@pytest.fixture
def run() -> Run:
    app = typer.Typer()
    app.command()(export)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def readings(segments: Path) -> list[Reading]:
    stream = read_records(segments / "segments.jsonl", Segment)[:5]
    contexts = [window_context(stream, {}, position, 3) for position in (0, 1)]
    return [Reading(context, "text", (1, 2, 3), (4, 5)) for context in contexts]


def answered(*pairs: tuple[tuple[int, ...], tuple[int, ...]]) -> Answer:
    return Answer(vllm="0.32.0", written=tuple(Written(prompt=prompt, tokens=tokens) for prompt, tokens in pairs))


def test_equal_tokens_are_counted(readings: list[Reading]) -> None:
    checked = compare(readings, answered(((1, 2, 3), (4, 5)), ((1, 2, 3), (4, 5))))
    assert (checked.vllm, checked.contexts, checked.tokens) == ("0.32.0", 2, 4)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (((1, 2, 3), (4, 6)), "segment 1: token 1 of the completion is 5 with transformers and 6 with vLLM"),
        (((1, 2, 3), (4,)), "token 1 of the completion is 5 with transformers and None with vLLM"),
        (((1, 9, 3), (4, 5)), "token 1 of the prompt is 2 with transformers and 9 with vLLM"),
    ],
)
def test_the_first_difference_is_named(second: Any, said: str, readings: list[Reading]) -> None:
    with pytest.raises(UserError, match=said):
        compare(readings, answered(((1, 2, 3), (4, 5)), second))


def test_a_skipped_check_is_said(run: Run, base: Path, digest: str, tmp_path: Path) -> None:
    done = run(base, "--out", tmp_path / "out", "--no-check")
    assert done.exit_code == 0
    assert "not checked (--no-check)" in done.output
    said = read_export(tmp_path / "out")
    assert (said.checked, said.policy) == (None, digest)


def test_the_check_needs_segments(run: Run, base: Path, tmp_path: Path) -> None:
    failed = run(base, "--out", tmp_path / "out")
    assert isinstance(failed.exception, UserError)
    assert "--segments is missing" in str(failed.exception)
    assert not (tmp_path / "out").exists()


def test_an_environment_without_vllm_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make serving-setup"):
        serving_python(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert serving_python(tmp_path) == tmp_path / "bin" / "python"


def test_vllm_that_does_not_run_fails_the_check(
    base: Path, digest: str, segments: Path, profile: Profile, tmp_path: Path
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no engine today\nexit 3\n")
    broken.chmod(0o755)
    check = greedy_check(base, digest, sample_of(segments, profile), broken)
    with pytest.raises(UserError, match=r"vLLM ended with 3 \(no engine today\)"):
        export_policy(base, digest, tmp_path / "out", check)
    assert not (tmp_path / "out").exists()


def sample_of(segments: Path, profile: Profile) -> Sample:
    film = footage(segments, profile)
    return Sample(film.segments, lambda segment: segments / segment.clip, film.frames_of, profile)


@pytest.mark.serving
def test_the_shipped_base_is_exported_and_checked(run: Run, base: Path, segments: Path, tmp_path: Path) -> None:
    done = run(base, "--segments", segments, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.exception
    checked = read_export(tmp_path / "out").checked
    assert checked is not None and checked.contexts == 8 and checked.tokens > 100
    assert f"the same {checked.tokens} greedy tokens in 8 contexts" in done.output


@pytest.mark.serving
@pytest.mark.parametrize("spoilt", ["square experts untransposed", "images normalised otherwise"])
def test_what_vllm_reads_wrongly_without_a_word_is_found(
    spoilt: str, base: Path, digest: str, segments: Path, profile: Profile, tmp_path: Path
) -> None:
    right = greedy_check(base, digest, sample_of(segments, profile), Path(sys.executable))

    def spoil(folder: Path) -> Any:
        if spoilt == "square experts untransposed":
            tensors = load_file(folder / "model.safetensors")
            for name, tensor in tensors.items():
                if name.endswith("experts.down_proj"):
                    assert tensor.shape[1:] == (SIZE, SIZE)
                    tensors[name] = tensor.transpose(1, 2).contiguous()
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        else:
            settings = json.loads((base / "processor_config.json").read_text())
            (folder / "processor_config.json").write_text(json.dumps(settings))
        return right(folder)

    with pytest.raises(UserError, match=r"with transformers and .* with vLLM"):
        export_policy(base, digest, tmp_path / "out", spoil)
    assert not (tmp_path / "out").exists()
