"""Live progress on the terminal: one bar a task, with time left; plain lines where there is no terminal."""

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text


class Task:
    """One task under way."""

    def __init__(self, *, name: str, total: int, bars: Bars | None, console: Console) -> None:
        """Show ``name`` with ``total`` units to do, on ``bars`` or as plain lines."""
        self._name, self._total, self._bars, self._console = name, total, bars, console
        self._done = 0
        self._spoken = time.monotonic()
        self._id = bars.add_task(name, total=total, note="") if bars else None

    def advance(self, units: int = 1, *, note: str = "") -> None:
        """Count ``units`` as done and show ``note`` beside the bar."""
        self._done += units
        if self._bars and self._id is not None:
            self._bars.update(self._id, advance=units, note=note)
        elif units and (time.monotonic() - self._spoken > 5 or self._done >= self._total):
            self._spoken = time.monotonic()
            self._console.print(f"{self._name}: {self._done}/{self._total} {note}".rstrip(), highlight=False)


class Progress:
    """Where stages show how far they are."""

    def __init__(self, *, console: Console | None = None, quiet: bool = False) -> None:
        """Write to ``console`` (standard error by default); nothing at all when ``quiet``."""
        self._console = console or Console(stderr=True, quiet=quiet)

    @property
    def console(self) -> Console:
        """The terminal, for tables."""
        return self._console

    def say(self, line: str, *, style: str = "") -> None:
        """Print one line as plain text."""
        self._console.print(Text(line, style=style))

    @contextmanager
    def task(self, name: str, *, total: int) -> Generator[Task]:
        """A task of ``total`` units, shown until the block ends."""
        if not self._console.is_terminal or self._console.quiet:
            yield Task(name=name, total=total, bars=None, console=self._console)
            return
        columns = (
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Bars(*columns, console=self._console) as bars:
            yield Task(name=name, total=total, bars=bars, console=self._console)
