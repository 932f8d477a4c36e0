"""Tracing: running a user's model once to record its program, and leaving it as it was."""
