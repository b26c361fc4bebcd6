"""What TRL's trainers share here: our progress in place of their printing."""

from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from taskmem.progress import Progress


class _Report(TrainerCallback):
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._progress(state.global_step, state.max_steps)


def report_to(trainer: Trainer, progress: Progress) -> None:
    """Report optimiser steps to `progress`, and print nothing."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Report(progress))
