"""Which channels to remove: criteria, allocation, budgets, the plan."""
