"""What a person sees: progress with time left on a terminal, nothing of it elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Reporter"]

Step = Callable[[int, int], None]


@dataclass
class Reporter:
    """Messages and progress go to standard error, so that standard output holds the result alone.

    Parameters
    ----------
    quiet : bool
        No messages; errors and results remain.
    """

    quiet: bool = False
    console: Console = field(
        default_factory=lambda: Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    )
    output: Console = field(default_factory=lambda: Console(highlight=False, markup=False, emoji=False))

    def say(self, message: str) -> None:
        """One line about what was done."""
        if not self.quiet:
            self.console.print(message, markup=False)

    def result(self, renderable: RenderableType) -> None:
        """A result, on standard output."""
        self.output.print(renderable)

    def warn(self, message: str) -> None:
        """A line that is shown also when quiet."""
        self.console.print(f"warning: {message}", markup=False, style="yellow")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Step]:
        """Show a bar with the time left while a stage runs; yield what the stage tells (done, total)."""
        if self.quiet or not self.console.is_terminal:
            yield lambda done, total: None
            return
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(name, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
