"""Rewrites of a recorded program: one form of calls, values in place of writes, dropouts that follow the mode."""
