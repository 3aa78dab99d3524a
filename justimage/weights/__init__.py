"""Weights: folders that describe themselves, the hub, and the layouts of other codebases."""
