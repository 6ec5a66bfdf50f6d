"""Progress on the screen and plots."""
