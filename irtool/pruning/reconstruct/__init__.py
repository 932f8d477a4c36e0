"""Reconstruction: the layers of a pruned graph, refitted by least squares on what they read there."""
