"""Rules that carry channel labels through operators, a module a family."""
