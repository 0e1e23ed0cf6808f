"""Recipes: one YAML file for the whole way, checked whole before anything runs, and the runner that carries it out."""
