"""Channel labels: which channels are coupled, and which entries of each value stay."""
