"""Builds the images of components/Containerfile and writes down their digests. `make images` runs it.

Usage: python3 tools/images.py [TARGET ...] [--engine podman|docker] [--base IMAGE] [--registry ghcr.io/taskmem] [--out FILE]
                                [--set SERVE_EXTRA=serve]

pip in the build sees what pip sees here: its settings go in as a build secret and so stay in no layer, and folders they name
(packages on this disk, certificates) are mounted, which podman can and docker cannot. Then FILE holds one reference for each
target, by digest where the engine knows one: podman always, docker after a push. It is what `taskmem compile --images` reads.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
REGISTRY = "ghcr.io/taskmem"
TARGETS = ("data", "train", "serve")
ENGINES = ("podman", "docker")
# what a build needs to know of pip, of all that pip can be told
SETTINGS = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "cert",
    "constraint",
    "proxy",
    "default-timeout",
)


def pip_settings() -> dict[str, str]:
    """pip's settings on this machine, those of its variables over those of its files."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
    if said.returncode:
        raise SystemExit(f"pip's settings cannot be read: {said.stderr.strip()}")
    settings: dict[str, str] = {}
    for line in sorted(said.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in SETTINGS:
            settings[key] = value.strip("'\"").replace("\\n", " ")
    return settings


def local_paths(settings: dict[str, str]) -> Iterator[Path]:
    """The files and folders of this machine that pip's settings name."""
    for name, value in settings.items():
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                # an index's pages link to files that lie beside them
                yield path.parent if name.endswith("index-url") else path


def version() -> str:
    """The project's version."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return str(document["project"]["version"])


def commit() -> tuple[str, str]:
    """The checkout's commit ("-dirty" where it was changed) and its date."""

    def git(*arguments: str) -> str:
        said = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return said.stdout.strip()

    return git("describe", "--always", "--abbrev=40", "--dirty", "--match="), git("log", "-1", "--format=%cI")


def build(engine: str, target: str, image: str, base: str | None, more: Sequence[str]) -> None:
    """Build one target as `image`; base images are never fetched behind one's back when one is given."""
    settings = pip_settings()
    paths = sorted(set(local_paths(settings)))
    if engine == "docker" and paths:
        raise SystemExit(
            f"pip here uses {paths[0]}, which a docker build cannot see: use podman, or an index with a URL"
        )
    revision, date = commit()
    named = {"VERSION": version(), "COMMIT": revision, "CREATED": date, **({"BASE": base} if base else {})}
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "pip.conf"
        lines = (f"{key} = {value}\n" for key, value in settings.items())
        secret.write_text("[global]\n" + "".join(lines), encoding="utf-8")
        command = [engine, "build", "--network=host", "--target", target, "--tag", image]
        command += ["--file", str(ROOT / "components" / "Containerfile"), "--secret", f"id=pip,src={secret}"]
        command += [f"--build-arg={key}={value}" for key, value in named.items()]
        command += [f"--build-arg={setting}" for setting in more]
        if engine == "podman":
            command += ["--layers", *(f"--volume={path}:{path}:ro" for path in paths)]
            command += ["--pull=never"] if base else []
        if status := subprocess.run([*command, str(ROOT)], check=False).returncode:
            raise SystemExit(f"{target}: {engine} build ended with {status}; what it said is above")


def reference(engine: str, image: str) -> str:
    """The image by digest if the engine knows one, else by tag."""
    said = subprocess.run([engine, "image", "inspect", image], capture_output=True, text=True, check=True)
    described = json.loads(said.stdout)[0]
    digests = described.get("RepoDigests") or []
    name = image.rpartition(":")[0]
    return next((digest for digest in digests if digest.startswith(f"{name}@")), image)


def images(
    engine: str, targets: Sequence[str], registry: str, base: str | None, more: Sequence[str], out: Path
) -> None:
    """Build the targets, and write and print their references."""
    made = {}
    for target in targets:
        image = f"{registry}/{target}:{version()}"
        build(engine, target, image, base, more)
        made[target] = reference(engine, image)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    for target, name in made.items():
        print(f"{target:6} {name}")
    print(out)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=TARGETS, default=[], metavar="TARGET", help="by default all")
    parser.add_argument("--engine", choices=ENGINES, help="by default the one that is installed, podman first")
    parser.add_argument("--base", help="the base image, already here; by default the Containerfile's, fetched")
    parser.add_argument("--registry", default=REGISTRY, help="registry and path of the images' names")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an ARG of the Containerfile")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "images.json", help="where references go")
    given = parser.parse_args()
    engine = given.engine or next((name for name in ENGINES if shutil.which(name)), None)
    if engine is None:
        raise SystemExit("neither podman nor docker is installed")
    images(engine, given.targets or TARGETS, given.registry, given.base, given.set, given.out)


if __name__ == "__main__":
    main()
