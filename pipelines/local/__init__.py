"""Runs a compiled Kubeflow pipeline on this machine: live display, logs in files, a cache by content, resume after a kill."""

from pipelines.local.run import Finished, StageFailedError, StageResult, run_pipeline

__all__ = ["Finished", "StageFailedError", "StageResult", "run_pipeline"]
