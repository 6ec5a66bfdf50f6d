"""Tasks: one file each, with its loss, its step and its metrics."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuzoo.tasks import base


def load(name: str) -> "type[base.Task]":
    """Return the class of a task: `Task` in gpuzoo/tasks/<name>.py."""
    return importlib.import_module(f"gpuzoo.tasks.{name}").Task
