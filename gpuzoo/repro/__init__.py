"""Train a run again and compare: verify, diff, replay (by runs/divergence, drift)."""
