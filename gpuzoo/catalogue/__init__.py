"""The catalogue of models and recipes, and their options."""
