"""Reproductions: the paper's tables and figures as tables of trainings, and what they say."""
