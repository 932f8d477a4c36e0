"""Checks of a trace against the model that it was made from."""
