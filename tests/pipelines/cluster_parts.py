"""The command line against a stub of Kubeflow Pipelines."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kfp_stub import TOKEN, Stub

from pipelines.cli import main
from pipelines.compiling import compile_one
from taskmem.config import load_profile

PARAMETERS: Mapping[str, Any] = {
    "shards": [{"name": "one", "environments": [{"environment": "door", "settings": {"phase_two": {"steps": 7}}}]}],
    "events": "s3://taskmem/events",
    "segments": "s3://taskmem/segments",
    "policy": "s3://taskmem/policy",
    "gate_segments": "s3://taskmem/gate",
    "gate_questions": "s3://taskmem/questions",
    "store": "s3://taskmem/store",
    "seed": 3,
    "pushgateway": "http://pushgateway:9091",
}


@dataclass(frozen=True)
class Said:
    """How a command ended and what it said."""

    code: int
    out: str
    error: str


class Cluster:
    """A stub, its address and the files that commands are given."""

    def __init__(
        self,
        stub: Stub,
        url: str,
        folder: Path,
        ir: Path,
        capsys: pytest.CaptureFixture[str],
        patch: pytest.MonkeyPatch,
    ) -> None:
        self.stub, self.url, self.folder, self.ir = stub, url, folder, ir
        self._capsys, self._patch = capsys, patch
        self.token = folder / "token"
        self.token.write_text(f"{TOKEN}\n")

    def parameters(self, **changes: Any) -> Path:
        path = self.folder / "parameters.json"
        path.write_text(json.dumps({**PARAMETERS, **changes}))
        return path

    def taskmem(self, *words: str | Path, host: str | None = None) -> Said:
        """A command in this process, with the address and the token."""
        where = ["--host", host or self.url, "--token-file", str(self.token)]
        self._patch.setattr(sys, "argv", ["taskmem", *map(str, words), *where])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        assert TOKEN not in said.out + said.err
        return Said(int(ended.value.code or 0), said.out, said.err)

    def schedule(self, *words: str | Path, **changes: Any) -> Said:
        return self.taskmem("schedule", self.ir, "--params", self.parameters(**changes), *words)

    def submit(self, *words: str | Path) -> Said:
        return self.taskmem("submit", self.ir, "--params", self.parameters(), *words)


@pytest.fixture(scope="session")
def ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nightly pipeline as `taskmem compile` writes it."""
    from components.images import load_images  # noqa: PLC0415 - kfp is slow to import

    return compile_one("adaptation", load_profile("miniature"), load_images(None), tmp_path_factory.mktemp("ir"))


@pytest.fixture
def cluster(
    tmp_path: Path, ir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    """A stub that must not have found a mistake in any request by the end of the test."""
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    stub = Stub()
    with stub.running() as url:
        yield Cluster(stub, url, tmp_path, ir, capsys, monkeypatch)
    assert stub.mistakes == [], stub.mistakes
