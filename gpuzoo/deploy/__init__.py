"""What becomes of the trained model."""
