"""Tasks: one file each, with its loss, its step and its metrics."""

import importlib
from typing import Any


def load(name: str) -> type[Any]:
    """Return the class of a task: `Task` in gpuzoo/tasks/<name>.py."""
    return importlib.import_module(f"gpuzoo.tasks.{name}").Task
