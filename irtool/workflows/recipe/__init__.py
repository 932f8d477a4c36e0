"""Recipes: a pipeline of training, pruning and export steps in one TOML file."""
