"""Rewrites of operators that MNN's converter refuses or misreads, into others of the same numbers."""
