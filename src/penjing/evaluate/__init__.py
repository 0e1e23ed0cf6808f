"""Scores of models, with the uncertainty of each."""
