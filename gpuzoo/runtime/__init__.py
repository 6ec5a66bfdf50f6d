"""Device, precision, XLA, determinism, threads: chosen once, read back."""
