"""The compiled steps, the training loop, checkpoints."""
