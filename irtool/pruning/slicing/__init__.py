"""A plan carried out: slicing, its proof, and the check in numbers."""
