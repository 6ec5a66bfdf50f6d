"""`gpuzoo compare`: runs side by side."""

import dataclasses

import tyro

from gpuzoo.cli.parsing import Common, Output
from gpuzoo.errors import ExitCode


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare runs: settings that differ, metrics, differences over common seeds.

    Runs that differ in the seed only form a group. Of two groups, the differences
    between runs of the same seed are averaged, with a 95 % interval.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Two or more run folders, or folders of a sweep."""
    metric: str = ""
    """The metric of the differences, for example test_loss; default: the main one."""
    html: str | None = None
    """Write a page with tables and curves into this new file."""
    output: Common = Output()

    def __call__(self) -> int:
        from gpuzoo.report import compare as comparing

        found = comparing.compare(self.runs, self.metric, self.html)
        if not self.output.quiet:
            self._print(found, comparing)
        self.output.last_line(found)
        return ExitCode.DONE

    def _print(self, found: dict, comparing) -> None:
        from gpuzoo.cli.tables import add_row, show, table

        heads, rows = comparing.runs_table(found)
        runs = table(*heads, right=heads[3:])
        for row in rows:
            add_row(runs, *row)
        settings = table("setting", *(run["run"] for run in found["runs"]))
        for row in found["settings"]:
            add_row(settings, *row)
        parts = [runs, "", settings] if found["settings"] else [runs]
        show(*parts, *comparing.in_words(found))
        for line in found["notes"]:
            self.output.note(f"Note: {line}")
        if self.html:
            self.output.note(f"page: {self.html}")
