"""What is being learned: one file, one loss, one step, its metrics."""
