"""Device, precision, XLA, determinism and threads: set once, then read back."""
