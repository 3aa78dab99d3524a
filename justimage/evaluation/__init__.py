"""Evaluation: how good samples are, and which settings draw the best ones."""
