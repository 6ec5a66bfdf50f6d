"""Train a recipe from end to end: set up, run the loop of engine/, record, draw."""
