"""Which models and recipes there are, and what they take."""
