"""What is learned: one file for each task, with its loss, its step and its metrics."""

import importlib


def load(name: str) -> type:
    """The class of a task: gpuzoo/tasks/<name>.py's Task."""
    return importlib.import_module(f"gpuzoo.tasks.{name}").Task
