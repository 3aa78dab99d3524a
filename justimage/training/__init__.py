"""Training: losses, the loop, its state, the optimizer and the averages."""
