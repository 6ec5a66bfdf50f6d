"""Training recipes: a claim, a Recipe of literals, a two-line main; no logic."""
