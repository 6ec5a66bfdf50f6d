"""Output in Jupyter notebooks: one cell that is updated, and the pictures of a run."""

import html
import pathlib
import sys
import time

from gpuzoo.files import expand, read_inside
from gpuzoo.runs.record import read_run

_STYLES = {
    "bold": "font-weight:bold",
    "yellow": "color:#8a6d00",
    "bold yellow": "color:#8a6d00;font-weight:bold",
    "bold green": "color:#1a7f37;font-weight:bold",
}
_SECONDS = 0.2  # between updates of the progress bar


def in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel."""
    found = sys.modules.get("IPython")
    shell = found.get_ipython() if found else None
    return getattr(shell, "kernel", None) is not None


class Cell:
    """Lines of text and a progress bar below them, as one output of a cell."""

    is_terminal = False

    def __init__(self):
        self._lines: list[tuple[str, str | None]] = []
        self._bar, self._handle, self._shown = "", None, 0.0

    def print(self, text: str, style: str | None = None, **_) -> None:
        """Add a line."""
        self._lines.append((text, style))
        self._show()

    def progress(self, done: int, total: int) -> None:
        """Show the bar; of a total of 0 remove it."""
        part = round(40 * done / total) if total else 0
        self._bar = f"{'█' * part}{'░' * (40 - part)} {done}/{total}" if total else ""
        if not total or time.monotonic() > self._shown + _SECONDS:
            self._show()

    def _show(self) -> None:
        from IPython.display import display

        self._shown = time.monotonic()
        lines = [*self._lines, *([(self._bar, None)] if self._bar else [])]
        text = "\n".join(
            f'<span style="{_STYLES[style]}">{html.escape(line)}</span>'
            if style in _STYLES
            else html.escape(line)
            for line, style in lines
        )
        shown = {
            "text/plain": "\n".join(line for line, _ in lines),
            "text/html": f'<pre style="line-height:1.3;overflow-x:auto">{text}</pre>',
        }
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


class Run(dict):
    """What `gpuzoo.train` returns: the summary, a dict, that can show its pictures."""

    def show(self) -> None:
        """Show the curves and pictures of the run in a notebook; elsewhere print the
        names of their files."""
        show(self["run_dir"])


def show(run: str | pathlib.Path) -> None:
    """Show the pictures of a run, the curves first."""
    path = expand(run)
    names = [
        name
        for name in read_run(path).get("files", {})
        if name.endswith((".png", ".gif")) and "/" not in name
    ]
    for name in sorted(names, key=lambda name: (name != "curves.png", name)):
        if not in_notebook():
            print(path / name)
            continue
        from IPython.display import Image, display

        kind = name.rpartition(".")[2]
        display(Image(data=read_inside(path, name), format=kind))
    if not names:
        print(f"{path} has no pictures")
