"""Allocation: the number of channels that each layer loses, by ratios, budgets and times, in widths that engines like."""
