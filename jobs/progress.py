"""Live progress of a run: bars in a terminal, plain lines when piped."""

import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def duration(seconds: float) -> str:
    """Return seconds for a reader.

    >>> duration(3.21), duration(75), duration(4000)
    ('3.2 s', '1 min 15 s', '1 h 06 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


class _Counter:
    """What both faces count: where an asset stands, and how long the rest of it may take."""

    def __init__(self) -> None:
        self.begin = time.monotonic()
        self.groups: dict[str, str] = {}
        self.name, self.total, self.todo, self.done, self.seconds = "", 0, 0, 0, 0.0

    def started(self, assets: Sequence[tuple[str, str, int]]) -> int:
        """Remember the stage of each asset; returns the number of partitions."""
        self.groups = {name: group for group, name, _ in assets}
        return sum(total for _, _, total in assets)

    def title(self) -> str:
        """Return the stage and the name of the running asset."""
        return f"{self.groups.get(self.name, ''):<12} {self.name:<24}"

    def next_asset(self, name: str, total: int, todo: int) -> None:
        self.name, self.total, self.todo, self.done, self.seconds = name, total, todo, 0, 0.0

    def add(self, seconds: float) -> None:
        self.done += 1
        self.seconds += seconds

    def finished_line(self) -> str:
        fresh = self.total - self.todo
        parts = [f"{self.todo} made in {duration(self.seconds)}"] if self.todo else []
        parts += [f"{fresh} fresh"] if fresh else []
        return f"{self.title()} {', '.join(parts)}"

    def left(self) -> str:
        """Return the rate so far and how long the other partitions may take."""
        rest = self.todo - self.done
        if not self.done or not rest:
            return ""
        each = self.seconds / self.done
        return f"{duration(each)} each, about {duration(each * rest)} left"


class PlainProgress:
    """One line per asset (stage, name, what was made), and one per partition that takes longer than `slow` seconds."""

    def __init__(self, stream: TextIO, slow: float = 5.0, every: float = 20.0) -> None:
        self.stream, self.slow, self.every = stream, slow, every
        self.counter, self.spoken = _Counter(), time.monotonic()

    def _say(self, line: str) -> None:
        self.spoken = time.monotonic()
        self.stream.write(f"{time.monotonic() - self.counter.begin:7.1f} s  {line}\n")
        self.stream.flush()

    def started(self, assets: Sequence[tuple[str, str, int]]) -> None:
        """Say how much there is to look at."""
        self._say(f"{len(assets)} assets, {self.counter.started(assets)} partitions")

    def asset(self, name: str, total: int, todo: Sequence[tuple[str | None, str]]) -> None:
        """Begin an asset; one that is fresh is one line."""
        self.counter.next_asset(name, total, len(todo))
        if not todo:
            self._say(self.counter.finished_line())

    def partition_started(self, name: str, partition: str | None) -> None:
        """Nothing to say yet."""

    def partition_done(self, name: str, partition: str | None, seconds: float) -> None:
        """Say a slow partition, and the end of the asset."""
        self.counter.add(seconds)
        if self.counter.done == self.counter.todo:
            self._say(self.counter.finished_line())
        elif seconds >= self.slow:
            done = f"{self.counter.done}/{self.counter.todo}"
            self._say(f"{self.counter.title()} {done} {partition or ''} {duration(seconds)}, {self.counter.left()}")

    def message(self, line: str) -> None:
        """Pass on a line of the running asset now and then."""
        if time.monotonic() - self.spoken >= self.every:
            self._say(f"  {self.counter.name}: {line[:160]}")

    def close(self) -> None:
        """Nothing to give back."""


class TerminalProgress:
    """A bar for all partitions and one for the running asset, finished assets above them."""

    def __init__(self, stream: TextIO) -> None:
        self.counter = _Counter()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=Console(file=stream, highlight=False),
            transient=True,
        )
        self.all = self.progress.add_task("all partitions", total=None, note="")
        self.one = self.progress.add_task("", total=1, note="", visible=False)
        self.progress.start()

    def started(self, assets: Sequence[tuple[str, str, int]]) -> None:
        """Set the length of the whole."""
        self.progress.update(self.all, total=self.counter.started(assets))

    def asset(self, name: str, total: int, todo: Sequence[tuple[str | None, str]]) -> None:
        """Begin an asset."""
        self.counter.next_asset(name, total, len(todo))
        self.progress.advance(self.all, total - len(todo))
        if not todo:
            return self._finish()
        title = self.counter.title().strip()
        self.progress.reset(self.one, total=len(todo), description=title, visible=True, note=todo[0][1])
        return None

    def partition_started(self, name: str, partition: str | None) -> None:
        """Show which partition runs."""
        self.progress.update(self.one, note=f"{partition or ''} {self.counter.left()}")

    def partition_done(self, name: str, partition: str | None, seconds: float) -> None:
        """Advance both bars."""
        self.counter.add(seconds)
        self.progress.advance(self.all)
        self.progress.advance(self.one)
        if self.counter.done == self.counter.todo:
            self._finish()

    def message(self, line: str) -> None:
        """Show the running asset's latest line beside its bar."""
        self.progress.update(self.one, note=line[:70].replace("[", "\\["))

    def _finish(self) -> None:
        mark = "[green]✓[/green]" if self.counter.todo else "[dim]·[/dim]"
        self.progress.console.print(f"{mark} {self.counter.finished_line()}")
        self.progress.update(self.one, visible=False)

    def close(self) -> None:
        """Take the bars away."""
        self.progress.stop()


def progress_on(stream: TextIO) -> PlainProgress | TerminalProgress:
    """Return bars for a terminal, lines for anything else."""
    return TerminalProgress(stream) if stream.isatty() else PlainProgress(stream)
