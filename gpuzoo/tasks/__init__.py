"""What is learned: one file for each task, with its loss, its step and its figures."""

import importlib

from gpuzoo.errors import GpuzooError


def load(name: str) -> type:
    """The class of a task: gpuzoo/tasks/<name>.py's Task."""
    return importlib.import_module(f"gpuzoo.tasks.{name}").Task


def check(recipe) -> None:
    """Raises GpuzooError for a bad change of the images, and for what needs labels
    where the task has none."""
    from gpuzoo.tasks import augment

    changes = augment.parse(recipe.augment)
    if recipe.tta != "none" and recipe.task not in ("classify", "distill"):
        raise GpuzooError(
            f"tta is for classifying images; leave it at none for {recipe.task}"
        )
    if recipe.teacher and recipe.task != "distill":
        raise GpuzooError(f"teacher is for the task distill; {recipe.task} has none")
    if recipe.task in ("classify", "distill"):
        return
    if changes and recipe.task in ("classify_audio", "forecast"):
        raise GpuzooError(f"augment changes images; {recipe.task} has none")
    for name, asked in (
        ("label_smoothing", recipe.label_smoothing and recipe.task != "classify_audio"),
        ("augment mixup or cutmix", any(change.mixes for change in changes)),
    ):
        if asked:
            raise GpuzooError(f"{name} is for labels; {recipe.task} uses none")


def settle(recipe):
    """The recipe with the digests of all that it names, to be recorded.

    Raises GpuzooError for what cannot be read.
    """
    if recipe.task != "distill":
        return recipe
    return importlib.import_module("gpuzoo.tasks.distill").settle(recipe)
