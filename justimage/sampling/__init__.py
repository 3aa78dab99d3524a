"""Sampling: from noise to samples, and samples to files and pictures."""
