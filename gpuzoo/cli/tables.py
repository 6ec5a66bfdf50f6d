"""Tables on stdout, rendered by rich to the width of the terminal. In a pipe or a file
lines are not wrapped unless COLUMNS is set. Control characters are escaped, as names of
classes and files may come from anybody."""

import shutil

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpuzoo.cli.parsing import printable, printable_lines


def width() -> int:
    return max(80, shutil.get_terminal_size((500, 25)).columns)


def table(*heads: str, right=(), whole=(), **options) -> Table:
    """Return an empty table without borders; `right`: right-aligned columns; `whole`:
    columns whose cells are never wrapped."""
    gap = 1 if width() < 100 else 2
    made = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, **options)
    for head in heads:
        made.add_column(
            Text(printable_lines(head)),
            justify="right" if head in right else "left",
            overflow="fold",
            no_wrap=head in whole,
        )
    return made


def add_row(made: Table, *cells) -> None:
    """Add a row of any values, printed literally: `[...]` is not parsed as markup."""
    made.add_row(*(Text(printable(str(cell))) for cell in cells))


def show(*things) -> None:
    """Print tables and texts."""
    console = Console(width=width(), highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        for thing in things:
            console.print(printable_lines(thing) if isinstance(thing, str) else thing)
    for line in captured.get().splitlines():
        print(line.rstrip())
