"""What a person sees of a running run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

LINE_S = 10.0
"""Seconds between two plain lines of one phase."""


class Display(Protocol):
    """Where the orchestrator reports to."""

    def message(self, text: str) -> None:
        """Show one line."""
        ...

    def begin(self, label: str, total: float, unit: str) -> None:
        """Begin a phase of `total` units."""
        ...

    def update(self, done: float, text: str = "") -> None:
        """Set what is done of the phase, and what is being done."""
        ...

    def end(self, text: str) -> None:
        """End the phase with its result."""
        ...


def make_display(console: Console) -> BarDisplay | PlainDisplay:
    """Return bars if `console` is a terminal that can move its cursor, plain lines otherwise; a context manager either way."""
    return BarDisplay(console) if console.is_terminal and not console.is_dumb_terminal else PlainDisplay(console)


class PlainDisplay:
    """One line at the begin and end of a phase, and one every `LINE_S` seconds between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._label, self._total, self._unit = "", 0.0, ""
        self._printed = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass

    def message(self, text: str) -> None:
        """Print `text`."""
        # soft_wrap: a line stays one line whatever the width, so that paths and commands can be copied.
        self._console.print(Text(text), soft_wrap=True)

    def begin(self, label: str, total: float, unit: str) -> None:
        """Print the label and the amount of work."""
        self._label, self._total, self._unit = label, total, unit
        self._printed = time.monotonic()
        self.message(f"{label}: {total:g} {unit}")

    def update(self, done: float, text: str = "") -> None:
        """Print progress if the last line is old enough."""
        now = time.monotonic()
        if now - self._printed >= LINE_S:
            self._printed = now
            self.message(f"{self._label}: {done:.0f} of {self._total:g} {self._unit}{f', {text}' if text else ''}")

    def end(self, text: str) -> None:
        """Print the result."""
        self.message(f"{self._label}: {text}")


class BarDisplay:
    """A bar for the running phase; finished phases stay as lines above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._label = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.stop()

    def message(self, text: str) -> None:
        """Print `text` above the bar."""
        self._progress.console.print(Text(text), soft_wrap=True)

    def begin(self, label: str, total: float, unit: str) -> None:
        """Show a bar."""
        self._label = label
        self._task = self._progress.add_task(label, total=max(total, 1e-9), unit=unit, text="")

    def update(self, done: float, text: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, text=text)

    def end(self, text: str) -> None:
        """Replace the bar by the result."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self.message(f"{self._label}: {text}")
