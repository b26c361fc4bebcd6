"""What each stage asks of a cluster: accelerator, memory, placement, secrets, retries, nodes. Plain data."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from taskmem.settings import Count, Positive, Settings

USER = 1000
"""The user and group that the images are built for; never root."""
IMAGE = "TASKMEM_IMAGE"
"""The variable in which a task is told which image it runs in."""
Cpu = Annotated[str, Field(pattern=r"^([0-9]+(\.[0-9]+)?|[0-9]+m)$")]
"""CPU cores as kfp takes them: "8", "0.5" or "500m"."""
Memory = Annotated[str, Field(pattern=r"^[0-9]+(E|Ei|P|Pi|T|Ti|G|Gi|M|Mi|K|Ki)?$")]
"""Bytes as kfp takes them: "64Gi"."""
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$")]
LabelKey = Annotated[str, Field(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

StageName = Literal[
    "video_segmentation",
    "phase_one_gspo",
    "rollout_cache",
    "judge_scoring",
    "deployment",
    "feedback_collection",
    "preference_mining",
    "phase_two_dpo",
    "streaming_eval",
    "lineage_record",
    "notify",
]
STAGES: tuple[StageName, ...] = StageName.__args__  # type: ignore[attr-defined]


class Accelerator(Settings):
    """So many devices of one Kubernetes resource, such as nvidia.com/gpu."""

    type: LabelKey
    count: Count


class Toleration(Settings):
    """A taint that a stage's pod puts up with; no value means that the key's existence is enough."""

    key: LabelKey
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]

    @property
    def kubernetes(self) -> dict[str, str]:
        """As a pod says it."""
        if self.value is None:
            return {"key": self.key, "operator": "Exists", "effect": self.effect}
        return {"key": self.key, "operator": "Equal", "value": self.value, "effect": self.effect}


class SecretVariable(Settings):
    """An environment variable filled from a Kubernetes secret; the value is never in a file of ours."""

    variable: Variable
    secret: KubernetesName
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,253}$")]


class Retry(Settings):
    """How often a failed stage is tried again, and how long it waits: `seconds`, times `factor` (whole, for Argo) each time."""

    count: Annotated[int, Field(ge=0)]
    seconds: Count
    factor: Count


class StageResources(Settings):
    """What one stage's pod asks for. `image` names the kind of image, see `components.images`."""

    image: Literal["data", "train"]
    cpu: Cpu
    memory: Memory
    shm: Memory | None  # size of /dev/shm; data loaders and NCCL need more than a container's 64 MiB
    accelerator: Accelerator | None
    tolerations: list[Toleration]
    node_selector: dict[LabelKey, LabelValue]
    secrets: list[SecretVariable]
    retry: Retry
    timeout_seconds: Count
    labels: dict[LabelKey, LabelValue]


def pod_labels(stage: StageName, asked: StageResources) -> dict[str, str]:
    """The labels of a stage's pods: Kubernetes' recommended ones, and those that the profile asks for."""
    standard = {"name": "taskmem", "component": stage, "part-of": "taskmem"}
    return {f"app.kubernetes.io/{key}": value for key, value in standard.items()} | dict(asked.labels)


class Launcher(Settings):
    """What the pod asks for that starts a training on other nodes and waits for it; it never holds a model."""

    cpu: Cpu
    memory: Memory


class TrainingNodes(Settings):
    """Where Phase One runs: on one node it is the stage's own pod, on more a Kubeflow TrainJob that the stage starts.

    Each node gets what `stages.phase_one_gspo` asks for. All nodes and the starting pod mount the volume `claim` (ReadWriteMany)
    at `mount`: inputs, checkpoints and the policy lie there, so that a run goes on after pre-emption.
    """

    count: Count
    accelerator_memory: Positive  # GB (1e9 bytes) of one accelerator, which `phase-one --plan` reckons with
    runtime: KubernetesName  # a ClusterTrainingRuntime or TrainingRuntime for torch
    claim: KubernetesName
    mount: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._-]+)+$")]
    launcher: Launcher


class JobSettings(Settings):
    """A training on several nodes as its stage is told of it: each node's image and resources."""

    image: str
    nodes: TrainingNodes
    resources: StageResources


class Spread(Settings):
    """How Phase One is spread over processes and cut into forward passes: it changes a result by rounding alone."""

    zero: Literal[3] | None  # DeepSpeed ZeRO stage; null = every process holds the whole model
    micro_batch: Count | None  # rollouts in one forward pass; null = all that a process has of a mini-batch
    gradient_checkpointing: bool
    sampling: Literal["whole", "layers"]  # what ZeRO-3 gathers to sample with: the whole model, or one layer at a time
    sampled: Count | None  # contexts that a process samples at once, a cache each; null = as many as make 128 rows
    full_checkpoints: Annotated[int, Field(ge=2)] | None  # the newest so many can be resumed; older keep weights alone


class ClusterSettings(Settings):
    """One `StageResources` for each stage of the loop and for `notify`; the nodes of Phase One; how feedback comes.

    `notify` tells what became of a run. Feedback comes as a folder of logs that agents write, or in parts that they ship to an
    object store.
    """

    feedback: Literal["logs", "parts"] = "logs"
    nodes: TrainingNodes
    stages: dict[StageName, StageResources]

    @model_validator(mode="after")
    def _every_stage(self) -> Self:
        missing = [name for name in STAGES if name not in self.stages]
        if missing:
            raise ValueError(f"no resources for the stages {', '.join(missing)}")
        return self

    def pod(self, stage: StageName) -> StageResources:
        """What the pod of a stage's own task asks for: all of it, or what starts the job if the training is on other nodes."""
        asked = self.stages[stage]
        if not self.on_nodes(stage):
            return asked
        starts: dict[str, object] = {
            "cpu": self.nodes.launcher.cpu,
            "memory": self.nodes.launcher.memory,
            "shm": None,
            "accelerator": None,
            "tolerations": [],
            "node_selector": {},
            "secrets": [],
            "labels": {},
            # the job may queue as long as it may run
            "timeout_seconds": 2 * asked.timeout_seconds,
        }
        return asked.model_copy(update=starts)

    def on_nodes(self, stage: StageName) -> bool:
        """Whether a stage runs on nodes of its own, and its task only starts them."""
        return stage == "phase_one_gspo" and self.nodes.count > 1
