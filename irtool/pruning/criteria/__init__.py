"""Criteria: scores of channels from their weights, or from images."""
