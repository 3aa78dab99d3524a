"""Tests of justimage."""
