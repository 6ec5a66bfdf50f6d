"""How a run runs."""
