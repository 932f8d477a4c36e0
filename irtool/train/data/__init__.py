"""Datasets: reading images, splitting, preprocessing and augmenting them."""
