"""Training recipes: results, a Recipe of literals, a two-line main; no logic."""
