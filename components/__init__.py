"""The Kubeflow components, one folder per stage. They hold no logic: a component imports from `taskmem` and calls."""
