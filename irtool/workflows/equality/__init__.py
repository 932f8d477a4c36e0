"""The chain of equality between a model and its files, and where two programs part."""
