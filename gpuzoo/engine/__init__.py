"""The compiled steps, the training loop, optimizers and learning rates, checkpoints."""
