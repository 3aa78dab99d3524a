"""Evaluation: how good samples are, as rows computed once per sample and metrics of arrays of rows."""
