"""A traced program run: whole, node by node, side by side, backwards."""
