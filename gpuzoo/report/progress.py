"""Progress of a run on the screen: a growing table and a progress bar below it.

The bar is shown in a terminal and in a notebook; elsewhere there are plain lines.
Nothing here can change the run.
"""

import contextlib
import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from gpuzoo.report.notebook import Cell, in_notebook

_WIDTH = 11
_ROWS = 50  # per split, about at most: tiny data would give one row per step


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise, where rich would end the process."""
        raise BrokenPipeError


class Screen:
    """A watcher that prints to standard error, in a notebook to one output of the cell;
    silent if `quiet`."""

    def __init__(self, quiet: bool = False):
        self.console: Console | Cell = _Console(
            stderr=True, quiet=quiet, soft_wrap=True, highlight=False
        )
        if in_notebook() and not quiet:
            self.console = Cell()
        self.bar: Progress | None = None
        self.quiet = quiet
        self.batch, self.speed, self.row = 0, 0.0, {}
        self.figures: dict[str, tuple[str, ...]] = {}
        self.watched = "test"
        self.width = _WIDTH
        self.steps, self.first, self.printed = 0, 0, {}

    def say(self, text: str, style: str | None = None) -> None:
        """Print one line, on a terminal wrapped between words."""
        with self._unless_gone():
            self.console.print(
                text, style=style, markup=False,
                soft_wrap=not self.console.is_terminal,
            )  # fmt: skip

    def watch(self, event: str, row: dict) -> None:
        with self._unless_gone():
            self._watch(event, row)

    @contextlib.contextmanager
    def _unless_gone(self):
        """Print nothing more, and train on, once the terminal cannot be written to."""
        try:
            yield
        except OSError:
            self.quiet = True
            self.bar = None
            self.console = Console(quiet=True)

    def _watch(self, event: str, row: dict) -> None:
        if self.quiet:
            return
        if event == "start":
            self._start(row)
        elif event == "progress":
            done = row["step"] - self.first
            self.speed = done * self.batch / max(row["seconds"], 1e-9)
            if self.bar:
                self.bar.update(self.task, completed=row["step"])
            elif isinstance(self.console, Cell):
                self.console.progress(row["step"], self.steps)
        elif event == "train":
            if self.row and self._is_due("train", self.row["step"]):
                self._print_row()
            self.row = row
        elif event == self.watched:
            if self._is_due("test", row["step"]):
                self._print_row(row)
            else:
                self.row = {}

    def _is_due(self, kind: str, step: int) -> bool:
        """Thin out rows evenly; the first and the last are always printed."""
        before = self.printed.get(kind, -self.steps)
        due = step == self.steps or step - before >= self.steps / _ROWS
        if due:
            self.printed[kind] = step
        return due

    def stop(self) -> None:
        """Remove the progress bar."""
        with self._unless_gone():
            if self.row:
                self._print_row()
            if self.bar:
                self.bar.stop()
            elif isinstance(self.console, Cell):
                self.console.progress(0, 0)
        self.bar = None

    def _start(self, row: dict) -> None:
        self.batch, self.figures = row["batch"], row["figures"]
        *_, self.watched = self.figures  # val or test
        self.steps, self.first = row["steps"], row["first"]
        self.say(
            f"{row['parameters']:,} parameters, {row['epochs']} epoch"
            f"{'s' * (row['epochs'] != 1)}, {row['steps']} steps of {row['batch']}"
        )
        short = {"accuracy": "acc", "discriminator": "discr."}
        heads = [
            f"{split} {short.get(name, name)}"
            for split in self.figures
            for name in self.figures[split]
        ]
        heads = ["epoch", "step", *heads, "examples/s"]
        self.width = max(_WIDTH, *(len(head) + 1 for head in heads))
        self.say("".join(head.rjust(self.width) for head in heads), "bold")
        if isinstance(self.console, Console) and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn(),
                TimeRemainingColumn(), console=self.console, transient=True,
            )  # fmt: skip
            self.task = self.bar.add_task("training", total=row["steps"])
            self.bar.start()

    def _print_row(self, test: dict | None = None) -> None:
        train, self.row = self.row, {}
        cells = [
            str(train["epoch"]),
            str(train["step"]),
            *(f"{train[name]:.4f}" for name in self.figures["train"]),
            *(f"{test[n]:.4f}" if test else "" for n in self.figures[self.watched]),
            f"{self.speed:,.0f}" if self.speed else "-",  # not measured yet
        ]
        line = "".join(cell.rjust(self.width) for cell in cells)
        self.say(line, "bold green" if test else None)


@contextlib.contextmanager
def files_bar(total: int, quiet: bool):
    """Show on a terminal how many of `total` files are done; yield the function to call
    after each."""
    console = _Console(stderr=True, quiet=quiet)
    if quiet or not console.is_terminal or total < 2:
        yield lambda: None
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn(),
        TimeRemainingColumn(), console=console, transient=True,
        redirect_stdout=sys.stdout.isatty(),  # rows for a file are no text for a screen
    ) as bar:  # fmt: skip
        task = bar.add_task("files", total=total)
        yield lambda: bar.advance(task)
