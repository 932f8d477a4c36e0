"""Time as a cost: of single layers, measured once and kept; of whole graphs, measured against each other; and why a net got no faster."""
