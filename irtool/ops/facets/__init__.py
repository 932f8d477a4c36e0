"""Facets of operators beside their labels: costs, channels, means, sizes, and their form on kept channels."""
