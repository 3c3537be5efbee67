"""Scores of generated images, and comparisons of runs."""
