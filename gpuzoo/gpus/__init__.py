"""Predictions for GPUs that this machine does not have."""
