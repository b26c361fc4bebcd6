"""The repository's DVC pipeline in a git repository of its own, with the small profile."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
import yaml
from dvc.repo import Repo
from dvc.stage import PipelineStage
from small_loop import environment

from taskmem.config import Profile, load_profile

ROOT = Path(__file__).parents[2]
COMMITTED = (
    "dvc.yaml",
    "requirements.lock",
    ".dvcignore",
    ".gitignore",
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvc/plots",
)
LOCK = "dvc.lock"


def params(profile: Profile) -> dict[str, Any]:
    """params.yaml with the settings of `profile`, in the form of the repository's own."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings = profile.model_dump(mode="json", exclude={"cluster", "name"})
    document["profile"] = {**document["profile"], **settings}
    return document


def environment_of_dvc(aside: Path) -> dict[str, str]:
    """The variables of a machine that knows neither DVC nor git; their files go below `aside`."""
    kept = {name: value for name, value in environment().items() if not name.startswith(("DVC_", "GIT_"))}
    places = {f"DVC_{kind}": str(aside / kind) for kind in ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR")}
    who = {f"GIT_{role}_{part}": "tester@localhost" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    # the commands of this very installation
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, **places, **who, "PATH": path, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


@dataclass(frozen=True)
class Project:
    """A work folder with one commit or more, and the variables its commands run with."""

    root: Path
    variables: Mapping[str, str]

    @classmethod
    def clone(cls, root: Path, profile: str, variables: Mapping[str, str]) -> "Project":
        """What a fresh clone has of the pipeline, with the settings of `profile`, committed."""
        for name in COMMITTED:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile)(ROOT / name, root / name)
        shutil.copytree(ROOT / "taskmem", root / "taskmem", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "params.yaml").write_text(yaml.safe_dump(params(load_profile(profile)), sort_keys=False))
        project = cls(root, variables)
        project.git("init", "--quiet", "--initial-branch", "main")
        project.commit()
        return project

    def copy(self, root: Path) -> "Project":
        """Everything, DVC's cache too, in another folder."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root, self.variables)

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "a state of the pipeline")

    def git(self, *arguments: str) -> str:
        return self._run("git", *arguments)

    def dvc(self, *arguments: str) -> str:
        return self._run("dvc", *arguments)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.dvc(*arguments, "--json"))

    def repro(self) -> list[str]:
        """Run what is to be run, and say which stages that were."""
        return ran(self.dvc("repro"))

    def stages(self) -> dict[str, PipelineStage]:
        """The stages by name, those of a loop too, each after those it depends on."""
        return {stage.name: stage for stage in networkx.topological_sort(self._graph())}

    def downstream(self, name: str) -> set[str]:
        """The stages that stand on what a stage makes, and itself."""
        graph = self._graph()
        (stage,) = [stage for stage in graph if stage.name == name]
        return {name, *(other.name for other in networkx.descendants(graph, stage))}

    def _graph(self) -> "networkx.DiGraph[PipelineStage]":
        repo = Repo(str(self.root), config={"core": {"site_cache_dir": self.variables["DVC_SITE_CACHE_DIR"]}})
        # DVC's own arrows point from a stage to what it depends on
        return networkx.reverse(repo.index.graph)

    def _run(self, *command: str) -> str:
        found = shutil.which(command[0], path=self.variables["PATH"])
        assert found, command
        done = subprocess.run(
            [found, *command[1:]],
            cwd=self.root,
            env=dict(self.variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def ran(said: str) -> list[str]:
    """The stages that DVC says it runs."""
    return re.findall(r"^Running stage '(.+)':$", said, re.MULTILINE)


def read(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
