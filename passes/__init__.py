"""Passes: one a file, none of which imports another."""
