"""Events of a training, for `gpuzoo.train(..., on_event=f)`.

`f` is called with one of these after each thing that happens. It may look and write,
and changes nothing about the run.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """The base class of all events."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The steps are compiled, and the first one is next; of a resumed run, too."""

    run_dir: str
    run_id: str
    recipe: dict
    """The fields of the recipe, as in run.json."""
    parameters: int
    """Numbers in the weights of the model."""
    epochs: int
    steps: int
    """Steps of the whole run."""
    batch_size: int
    step: int
    """Steps done before; 0 unless the run is resumed or continues another."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """Some steps are done; not yet logged."""

    step: int
    seconds: float
    """Of training so far, without compilation and evaluations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logged(Event):
    """The means of the training metrics over the steps since the last such event."""

    epoch: int
    step: int
    metrics: dict[str, float]
    split: str = "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """The metrics of an evaluation."""

    split: str
    """val or test."""
    epoch: int
    step: int
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint was written: a killed run resumes from this step."""

    step: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding(Event):
    """A warning about the data or the model, as printed; after Started."""

    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stopped(Event):
    """The run was interrupted, and can be resumed."""

    step: int
    summary: dict
    """What `gpuzoo.train` returns."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The run is complete, its files are written."""

    step: int
    summary: dict
    """What `gpuzoo.train` returns."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The training raised an error, which `gpuzoo.train` raises next."""

    error: BaseException
