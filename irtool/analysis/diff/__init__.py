"""Differences between two graphs: matching nodes, and what changed in each."""
