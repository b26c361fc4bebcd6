"""The console script: taskmem's commands. The Kubeflow ones are mounted here, so that taskmem itself needs no kfp."""

from taskmem.cli import app, run


def main() -> None:
    """Run the command line."""
    run(app)


if __name__ == "__main__":
    main()
