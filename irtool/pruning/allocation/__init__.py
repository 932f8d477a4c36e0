"""How many channels of each layer go: ratios, budgets, times, in widths that engines like."""
