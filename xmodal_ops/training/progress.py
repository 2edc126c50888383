"""Progress of a training: a bar on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """A context manager. Call `step` after every step and `epoch` after every epoch."""

    def __init__(self, console: Console, epochs: int, steps: int, monitor: str) -> None:
        self.console, self.epochs, self.steps, self.monitor = console, epochs, steps, monitor
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[validation]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
        self.task: TaskID = self.bar.add_task("", total=epochs * steps, epoch=f"0/{epochs}", loss="–", validation="")

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, step: int, loss: float) -> None:
        epoch = f"{min((step - 1) // self.steps + 1, self.epochs)}/{self.epochs}"
        self.bar.update(self.task, completed=step, epoch=epoch, loss=f"{loss:.2f}")

    def epoch(self, row: dict[str, float]) -> None:
        score = row[f"validation {self.monitor}"]
        self.bar.update(self.task, validation=f"validation {self.monitor} {score:.3f}")
        if not self.console.is_terminal:
            self.console.print(
                f"epoch {row['epoch']:.0f}/{self.epochs}  loss {row['loss']:.2f}  "
                f"validation {self.monitor} {score:.3f}  {row['seconds']:.1f} s",
                highlight=False,
            )
