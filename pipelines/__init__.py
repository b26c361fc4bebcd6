"""The `taskmem` console script, and the Kubeflow pipelines to come."""
