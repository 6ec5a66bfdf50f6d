"""Tables: the task that fits the target, classification or regression."""

from gpuzoo.tasks import base


class Task(base.Task):
    """Stands in a recipe until the data are known: classify_table if the target has
    classes, else regress_table. `--task` forces one of them."""

    metrics = (base.LOSS, base.Metric("r2", greater_is_better=True))
    """Of the recipe's own data, which have a number as target."""
    uses = frozenset({"label_smoothing", "class_weight", "target", "columns"})

    @staticmethod
    def of_data(recipe, dataset):
        """Return the recipe with the task for the target of the data."""
        from gpuzoo import tasks

        chosen = "classify_table" if dataset.classes else "regress_table"
        recipe = recipe.override(task=chosen)
        tasks.load(chosen).check_recipe(recipe)
        return recipe
