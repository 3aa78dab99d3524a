"""Runs: recipes, and a training run as a folder."""
