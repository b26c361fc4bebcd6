"""What a profile asks of a cluster, put on a Kubeflow task: the one helper that every pipeline uses for every task.

kfp expresses all of `taskmem.cluster.StageResources`. It cannot express pod affinity, topology spread, a priority or scheduler
class, a service account per task, or a second accelerator resource: a stage that needs one of these, or more than one node,
launches a Kubeflow TrainJob, whose pod template has them.
"""

from kfp import dsl, kubernetes

from components.images import Images, is_pinned
from taskmem.cluster import IMAGE, USER, ClusterSettings, StageName, StageResources, pod_labels
from taskmem.config import Profile
from taskmem.errors import UserError

RETRY_WINDOW = "365d"
"""Never binds: Argo takes it as a deadline from the first attempt's start, queueing included, and kfp's default is an hour."""


def place(
    task: dsl.PipelineTask,
    stage: StageName,
    profile: Profile,
    images: Images,
    *,
    name: str | None = None,
    cached: bool = True,
) -> dsl.PipelineTask:
    """Give a task its image and all that the profile asks for its stage; what the profile does not ask leaves no trace.

    Call it once for each task. `name` is what the task is called on screen, the stage if not given. `cached` says that a
    result may be reused while the inputs are the same; it holds only for an image named by digest, because kfp's cache key
    has the image's name and not its contents.
    """
    if profile.cluster is None:
        raise UserError(f"profile {profile.name}: says nothing of a cluster; give one with cluster.stages")
    asked = profile.cluster.pod(stage)
    image = images.reference(asked.image)
    task.set_container_image(image)
    # what a task makes names the image that made it
    task.set_env_variable(IMAGE, image)
    task.set_display_name(name or stage)
    task.set_caching_options(cached and is_pinned(image))
    _compute(task, asked)
    _scheduling(task, asked)
    _pod(task, stage, asked)
    _attempts(task, asked)
    _shared(task, stage, profile.cluster)
    return task


def _compute(task: dsl.PipelineTask, asked: StageResources) -> None:
    # request equals limit: the pod gets what it was planned with, and is the last to be evicted
    task.set_cpu_request(asked.cpu).set_cpu_limit(asked.cpu)
    task.set_memory_request(asked.memory).set_memory_limit(asked.memory)
    if asked.accelerator:
        task.set_accelerator_type(asked.accelerator.type)
        task.set_accelerator_limit(asked.accelerator.count)
    if asked.shm:
        kubernetes.empty_dir_mount(
            task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=asked.shm
        )


def _scheduling(task: dsl.PipelineTask, asked: StageResources) -> None:
    for key, value in asked.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for taint in asked.tolerations:
        kubernetes.add_toleration(task, **taint.kubernetes)


def _pod(task: dsl.PipelineTask, stage: StageName, asked: StageResources) -> None:
    for key, value in pod_labels(stage, asked).items():
        kubernetes.add_pod_label(task, key, value)
    # one call a variable: kfp's mapping is keyed by the secret's key, so two variables of one key would be one
    for secret in asked.secrets:
        kubernetes.use_secret_as_env(task, secret.secret, {secret.key: secret.variable}, optional=False)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)


def _attempts(task: dsl.PipelineTask, asked: StageResources) -> None:
    kubernetes.set_timeout(task, asked.timeout_seconds)
    retry = asked.retry
    if not retry.count:
        return
    task.set_retry(
        retry.count,
        backoff_duration=f"{retry.seconds}s",
        backoff_factor=retry.factor,
        backoff_max_duration=RETRY_WINDOW,
    )


def _shared(task: dsl.PipelineTask, stage: StageName, cluster: ClusterSettings) -> None:
    """The volume by which a stage and the nodes of its job hand each other files."""
    if cluster.on_nodes(stage):
        kubernetes.mount_pvc(task, pvc_name=cluster.nodes.claim, mount_path=cluster.nodes.mount)
