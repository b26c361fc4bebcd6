"""Folders are published whole, and as readable as they are."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from taskmem.files import replace_directory


@pytest.mark.parametrize(("folder", "file"), [(0o755, 0o644), (0o750, 0o640), (0o700, 0o600)])
def test_safetensors_are_as_readable_as_their_folder(tmp_path: Path, folder: int, file: int) -> None:
    source, target = tmp_path / "made", tmp_path / "published"
    (source / "inner").mkdir(parents=True)
    weights = source / "inner" / "model.safetensors"
    save_file({"a": torch.zeros(1)}, weights)
    secret = source / "token"
    secret.touch(0o600)
    source.chmod(folder)
    replace_directory(source, target)
    assert (target / "inner" / weights.name).stat().st_mode & 0o777 == file
    assert (target / secret.name).stat().st_mode & 0o777 == 0o600


def test_an_older_folder_goes_and_nothing_is_left_beside_the_new_one(tmp_path: Path) -> None:
    source, target = tmp_path / "made", tmp_path / "published"
    for path, text in ((target, "old"), (source, "new")):
        path.mkdir()
        (path / text).touch()
    replace_directory(source, target)
    assert [path.name for path in tmp_path.iterdir()] == ["published"]
    assert [path.name for path in target.iterdir()] == ["new"]
