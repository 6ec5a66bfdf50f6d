"""How fast a recipe is in every mode of a machine."""
