"""What became of a night, told to Prometheus."""

from kfp.dsl import Metrics, Output, PipelineTaskFinalStatus

from components.base import component


@component
def notify(
    status: PipelineTaskFinalStatus,
    run: str,
    shards: list,
    store: str,
    pushgateway: str,
    profile: str,
    metrics: Output[Metrics],
) -> None:
    """Push the night's outcome to the Pushgateway at the URL `pushgateway`, "" for none; runs however the night ended.

    An exit handler can take no task's output, so lineage_record leaves the numbers of the run in the store, where they are
    taken from. A night that ended before that counts every environment of `shards` as failed.
    """
    from taskmem.entry import notify as stage

    for name, value in stage(status.state, run, shards, store, pushgateway, profile).items():
        metrics.log_metric(name, value)
