"""The record of a teacher: the run that a student learns from."""

from gpuzoo.errors import GpuzooError
from gpuzoo.runs.record import read_run

SHIPPED = "lenet5"
"""The teacher that comes with gpuzoo, the classifier of tasks/frechet.py."""
CLASSIFIERS = ("classify", "classify_robust", "distill")
"""Tasks whose models give the class of an image."""


def model_of_teacher(teacher: str) -> str:
    """Return the name of a teacher's model, without building it.

    Raises:
        GpuzooError: it is not a run, or its record is damaged.
    """
    return SHIPPED if teacher == SHIPPED else record_of(teacher)["recipe"]["model"]


def record_of(teacher: str) -> dict:
    """Return the record of a teacher's run: sealed, ended, of a classifier."""
    try:
        record = read_run(teacher)
    except GpuzooError as error:
        raise GpuzooError(
            f"teacher {teacher}: {error}; name the folder of a run that classifies, or "
            f"{SHIPPED}"
        ) from None
    if record["state"] not in ("finished", "stopped"):
        raise GpuzooError(
            f"teacher {teacher}: is {record['state']}; only a finished or stopped run "
            "can teach"
        )
    if record["recipe"]["task"] not in CLASSIFIERS:
        raise GpuzooError(
            f"teacher {teacher}: was trained to {record['recipe']['task']}, not to "
            "classify"
        )
    return record
