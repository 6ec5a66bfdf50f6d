"""What happens after a training: load, evaluate, predict, export, serve, protect."""
