"""Passes shown on text: a case is a file, its graphs as `Graph.text()` prints them."""
