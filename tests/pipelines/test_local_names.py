"""What stages are called."""

import pytest
from local_parts import in_a_loop, nested, two_stages

from pipelines.local.names import file_name, label, loop_channels


@pytest.mark.parametrize(
    ("items", "iterations", "name"),
    [
        ([], [], "adapt"),
        (["env7"], [4], "adapt/env7"),
        ([{"name": "shard-a", "size": 3.0}], [0], "adapt/shard-a"),
        ([3.0], [0], "adapt/3"),
        (["env7", {"name": "a"}], [0, 1], "adapt/env7/a"),
        ([{"size": 3.0}], [4], "adapt/5"),
        ([["a", "b"]], [1], "adapt/2"),
        ([""], [1], "adapt/2"),
        (["x" * 31], [1], "adapt/2"),
        (["env7", None], [0, 1], "adapt/env7/2"),
        (["env7"], [4, 0], "adapt/5/1"),
    ],
    ids=str,
)
def test_a_stage_is_called_after_its_task_and_the_items_of_the_loops_around_it(
    items: list[object], iterations: list[int], name: str
) -> None:
    assert label("adapt", items, iterations) == name


@pytest.mark.parametrize(
    ("name", "file"),
    [("adapt/env 7", "adapt.env-7"), ("../../etc", "etc"), ("Größe: 1", "Gr-e-1"), ("..", "stage"), ("a (2)", "a-2")],
)
def test_a_log_is_named_after_the_stage_within_one_folder(name: str, file: str) -> None:
    assert file_name(name) == file


def test_the_items_of_loops_are_found_also_in_nested_pipelines() -> None:
    assert loop_channels(two_stages.pipeline_spec) == []
    assert loop_channels(in_a_loop.pipeline_spec) == ["pipelinechannel--scripts-loop-item"]
    channels = {"pipelinechannel--scripts-loop-item", "pipelinechannel--items-loop-item"}
    assert set(loop_channels(nested.pipeline_spec)) == channels
