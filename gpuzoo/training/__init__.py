"""Train a recipe from end to end."""
