"""The Kubeflow pipelines, what runs them, and the `taskmem` console script."""
