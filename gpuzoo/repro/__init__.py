"""A run done again and compared: verify, diff, replay."""
