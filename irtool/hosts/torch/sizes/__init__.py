"""Sizes written into a traced program, before and after slicing."""
