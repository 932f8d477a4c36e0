"""The torch host: `torch.fx` programs read into the graph view, run, edited and traced."""
