"""Formats of exported models: one module converts to each, `runtimes` executes them."""
