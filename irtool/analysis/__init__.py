"""Analyses: channel labels and groups, cost, comparison of two graphs."""
