"""Who watches a training: the run folder, the screen, the user's function, trackers."""

import copy
from collections.abc import Callable, Iterable

from gpuzoo import events
from gpuzoo.data.dataset import ORDER
from gpuzoo.errors import GpuzooError
from gpuzoo.home import redact
from gpuzoo.report import trackers
from gpuzoo.training.failures import NO_ROOM

OnEvent = Callable[[events.Event], object]


def check(on_event: OnEvent | None, track: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of the trackers, with their packages imported.

    Raises:
        GpuzooError: a name is unknown, a package is missing, or `on_event` is not a
            function.
    """
    if on_event is not None and not callable(on_event):
        raise GpuzooError(f"on_event must be a function of one event: {on_event!r:.60}")
    return trackers.check(track)


class Watchers:
    """Passes the events of the loop on.

    The user's function and the trackers see typed events (gpuzoo/events.py). If the
    function raises, it is not called again, and the loop is asked to stop, as by
    Ctrl-C: nothing is lost, and `raise_error` raises what it has raised.

    Attributes:
        begun: whether a step has been done.
    """

    def __init__(self, job, programs, begun: bool):
        self._job, self._programs, self.begun = job, programs, begun
        self._error: BaseException | None = None
        self._stopping = False
        self._held: list[events.Event] = []
        self._trackers = trackers.Trackers(
            tuple(job.folder.record.get("track", ())), job.folder.locate(),
            lambda text: job.screen.say(text),
        )  # fmt: skip

    def before(self, history: Iterable) -> None:
        """Take the rows up to the checkpoint that a run is resumed from."""
        self._trackers.before(
            _row(event, row) for event, row in history if event in ORDER
        )

    def asked(self) -> bool:
        """Whether the training is to stop."""
        return self._error is not None

    def watch(self, event: str, row: dict) -> None:
        """Watch the loop."""
        job = self._job
        self.begun = self.begun or event == "progress"
        if event == "start" and self._programs:
            self._programs.keep()
        if event == "stopping":
            self._stopping = True
            job.screen.say(
                "Stopping after one more evaluation. Ctrl-C again exits at once; a "
                "checkpoint is saved.", "yellow",
            )  # fmt: skip
        job.folder.watch(event, row)
        if event == "samples":
            self._draw(row)
        job.screen.watch(event, row)
        if event == "start":
            self._started(row)
        elif event == "progress":
            self._pass_on(events.Progress(step=row["step"], seconds=row["seconds"]))
        elif event == "checkpoint":
            self._pass_on(events.CheckpointSaved(step=row["step"]))
        elif event in ORDER:
            self._pass_on(_row(event, row))

    def close_trackers(self, state: str) -> None:
        """Let the trackers write all that they have, before the record of the run says
        that it has ended: a run killed in between is resumed, and tracked again."""
        if state == "finished":  # in the evaluation of a stop, by early stopping
            for event in self._held:
                self._trackers(event)
        self._trackers.end(state)

    def end(self, summary: dict) -> None:
        """Tell of the end of a run, and raise what the user's function has raised."""
        kind = events.Stopped if summary["state"] == "stopped" else events.Finished
        self._pass_on(kind(step=summary["steps"], summary=summary))
        if self._error is not None:
            raise self._error

    def failed(self, error: BaseException) -> None:
        """Tell of an error that ends the training."""
        self._trackers.end("failed")
        self._pass_on(events.Failed(error=error))

    def _started(self, row: dict) -> None:
        session, folder = self._job.session, self._job.folder
        self._pass_on(
            events.Started(
                run_dir=redact(str(folder.locate())), run_id=folder.record["id"],
                # A copy: the function may write into it.
                recipe=copy.deepcopy(folder.record["recipe"]),
                parameters=row["parameters"], epochs=row["epochs"], steps=row["steps"],
                batch_size=row["batch"], step=row["step"],
            )
        )  # fmt: skip
        for text in (*session.dataset.findings, *session.given.findings):
            self._pass_on(events.Finding(text=text))

    def _pass_on(self, event: events.Event) -> None:
        if self._stopping:  # the evaluation of a stop is not one of the run
            self._held.append(event)
        else:
            self._trackers(event)
        if self._job.on_event and self._error is None:
            try:
                self._job.on_event(event)
            except BaseException as error:
                self._error = error

    def _draw(self, row: dict) -> None:
        """Draw a sheet of generated images."""
        from gpuzoo.report import plots  # matplotlib takes a second

        try:
            plots.save_sheet(self._job.folder, row)
        except OSError as error:  # must not end the training
            if error.errno in NO_ROOM or self._job.folder.is_gone():
                raise
            self._job.screen.say(
                f"Cannot write {error.filename}: {error.strerror}.", "yellow"
            )


def _row(split: str, row: dict) -> events.Logged | events.Evaluated:
    """Return a row of the history as an event."""
    metrics = {k: v for k, v in row.items() if k not in ("epoch", "step")}
    kind = events.Logged if split == "train" else events.Evaluated
    return kind(split=split, epoch=row["epoch"], step=row["step"], metrics=metrics)
