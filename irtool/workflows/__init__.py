"""Whole jobs, as functions: what the command line parses, calls and prints."""
