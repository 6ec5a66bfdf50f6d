"""One training from end to end."""
