"""The graph view's hosts: a package for each IR that a graph can be written in."""
