"""phase_one_gspo on several nodes: this stage's task starts a TrainJob, and every process of the job runs this module.

Nodes of a TrainJob get no artifacts of a pipeline. So inputs are copied once to the volume that all nodes and the task mount,
into a folder named by what the training depends on; checkpoints lie beside them, and whoever starts the same training again goes
on from them. The folder goes when the policy has come back.

    torchrun -m taskmem.stages.nodes FOLDER/job.json
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from kubernetes import client, config  # type: ignore[import-untyped]
from kubernetes.config.config_exception import ConfigException  # type: ignore[import-untyped]
from pydantic import ValidationError

from taskmem.backends import opened_backends
from taskmem.cluster import JobSettings
from taskmem.config import Profile, parse_profile
from taskmem.errors import UserError
from taskmem.files import canonical_json, replace_directory, sha256_bytes, sha256_file, sha256_tree
from taskmem.phase_one.plan import Topology, checked
from taskmem.phase_one.ranks import Ranks
from taskmem.phase_one.sizes import read_config, sizes_of
from taskmem.phase_one.trainjob import Owner, TrainJobs, train_job
from taskmem.progress import Note, progress_lines, silent
from taskmem.records import read_json, write_json
from taskmem.settings import Settings
from taskmem.stages.train_policy import phase_one

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
JOB = "job.json"
INPUTS = ("segments", "base", "development", "questions")
RESULTS = ("policy", "training.json", "validation.json", "run.json")


class NodeJob(Settings):
    """What a node reads: names in the folder of this file, the profile as JSON, and the seed."""

    world: bool
    profile: str
    seed: int


def phase_one_on_nodes(
    segments: Path,
    base: Path,
    development: Path,
    questions: Path,
    world: Path | None,
    profile: Profile,
    seed: int,
    out: Path,
    job: JobSettings,
    environment: Mapping[str, str],
    jobs: TrainJobs | None = None,
) -> None:
    """Train on the nodes of `job` what `train_policy.phase_one` trains here, with the same files in `out`.

    UserError where the model does not fit the GPUs, before anything is copied or started, and for a job that fails. `jobs` is the
    cluster that this process runs in, if not given.
    """
    if job.resources.accelerator:
        spread = job.nodes
        topology = Topology(spread.count, job.resources.accelerator.count, spread.accelerator_memory)
        checked(sizes_of(read_config(base / "config.json")), profile, topology)
    given = dict(zip((*INPUTS, "world"), (segments, base, development, questions, world), strict=True))
    paths = {name: path for name, path in given.items() if path is not None}
    travels = NodeJob(world=world is not None, profile=canonical_json(profile.model_dump(mode="json")), seed=seed)
    key = _key(paths, travels, job)
    shared = Path(job.nodes.mount) / key
    results = shared / "out"
    if not (results / "policy").exists() or (results / "checkpoints").exists():
        for name, path in paths.items():
            _copied(path, shared / name)
        write_json(shared / JOB, travels.model_dump(mode="json"))
        owner = _owner(environment)
        body = train_job(f"taskmem-phase-one-{key}", job, ["-m", "taskmem.stages.nodes", str(shared / JOB)], owner)
        (jobs or _here(_printed)).run(body)
    if not (results / "policy").exists():
        raise UserError(f"{results}: the job is complete but left no policy; do all nodes mount {job.nodes.claim}?")
    out.mkdir(parents=True, exist_ok=True)
    for name in RESULTS:
        _copied(results / name, out / name)
    shutil.rmtree(shared)


def _key(paths: Mapping[str, Path], travels: NodeJob, job: JobSettings) -> str:
    """Names a training by all that it depends on, code and number of processes too: the same one again finds its checkpoints."""
    devices = job.resources.accelerator.count if job.resources.accelerator else 1
    digests = {name: sha256_file(path) if path.is_file() else sha256_tree(path) for name, path in paths.items()}
    return sha256_bytes(
        canonical_json([digests, travels.model_dump(mode="json"), job.image, job.nodes.count, devices])
    )[:16]


def _copied(source: Path, target: Path) -> None:
    """A copy of a file or folder, whole or not at all; one that is there is taken to be it."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    if source.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        replace_directory(partial, target)
    else:
        shutil.copyfile(source, partial)
        partial.replace(target)


def _printed(line: str) -> None:
    print(line, flush=True)


def _owner(environment: Mapping[str, str]) -> Owner | None:
    """The pod that this task runs in, as Kubeflow Pipelines names it."""
    name, uid = environment.get("KFP_POD_NAME"), environment.get("KFP_POD_UID")
    return Owner(name, uid) if name and uid else None


def _here(say: Note) -> TrainJobs:
    """The TrainJobs of the cluster and namespace that this process runs in."""
    settings = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=settings)
        namespace = NAMESPACE.read_text(encoding="utf-8").strip()
    except (ConfigException, OSError) as error:
        raise UserError(
            f"phase_one_gspo on several nodes: not in a cluster ({error}); set cluster.nodes.count to 1, or submit the pipeline"
        ) from None
    return TrainJobs(client.ApiClient(settings), namespace, say)


def train_here(file: Path, environment: Mapping[str, str]) -> None:
    """One process of the job: train what `file`, a `NodeJob`, says. The first process's progress goes to the log."""
    try:
        job = NodeJob.model_validate(read_json(file))
    except ValidationError:
        raise UserError(f"{file}: not what phase_one_gspo wrote; start the stage again") from None
    folder, ranks, profile = file.parent, Ranks.of(environment), parse_profile(job.profile)
    segments, base, development, questions = (folder / name for name in INPUTS)
    tell, out = progress_lines() if ranks.first else silent, folder / "out"
    world = folder / "world" if job.world else None
    with opened_backends(profile, world, segments, ranks.own(out)) as ends:
        phase_one(segments, base, development, questions, ends, profile, job.seed, out, tell, ranks)


def main() -> None:
    """The process that torchrun started."""
    try:
        train_here(Path(sys.argv[1]), os.environ)
    except UserError as error:
        print(f"taskmem: {error}", flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
