"""Datasets: loading, checking and caching."""
