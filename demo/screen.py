"""The transcript: headings, tables, checks, and progress where a person looks on; plain lines everywhere else."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

Found = TypeVar("Found")


class NotAsItShouldBe(Exception):
    """A step of the demonstration did not give what it has to give."""


class Screen:
    """Writes to standard output. Nothing is wrapped or cut, so that identifiers and commands can be copied."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._done = "✓" if self._console.encoding.startswith("utf") else "ok"
        self._steps = 0

    def step(self, title: str, why: str = "") -> None:
        """Begins the next step of the story."""
        self._steps += 1
        self._console.print()
        self._write(f"{self._steps}. {title}", "bold cyan")
        if why:
            self.say(why)

    def say(self, text: str, style: str = "") -> None:
        for line in text.splitlines() or [""]:
            self._write(f"   {line}".rstrip(), style)

    def command(self, line: str) -> None:
        """What was typed or sent."""
        self._write(f"   > {line}", "yellow")

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        cells = [[str(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        for number, row in enumerate([list(heads), *cells]):
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self._write(f"     {line}".rstrip(), "dim" if number == 0 else "")

    def check(self, holds: bool, what: str) -> None:
        """One thing that has to be so. Raises NotAsItShouldBe."""
        if not holds:
            raise NotAsItShouldBe(what)
        self._console.print(Text("   ").append(self._done, "green").append(f" {what}"))

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar over `total` steps; call what it yields after each."""
        with self._bar(BarColumn(), MofNCompleteColumn()) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)

    def wait(self, what: str, look: Callable[[], Found | None], limit_s: float) -> Found:
        """Looks until there is an answer. Raises NotAsItShouldBe after the limit."""
        deadline = time.monotonic() + limit_s
        with self._bar(SpinnerColumn()) as bar:
            bar.add_task(what, total=None)
            while (found := look()) is None:
                if time.monotonic() > deadline:
                    raise NotAsItShouldBe(f"{what}: not done after {limit_s:g} s")
                time.sleep(0.05)
        return found

    def _bar(self, *columns: SpinnerColumn | BarColumn | MofNCompleteColumn) -> Progress:
        plain = not self._console.is_terminal
        return Progress(
            TextColumn("   {task.description}"),
            *columns,
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=plain,
        )

    def _write(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style))


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1000 or unit == "MB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
