"""The job of `irtool compress`: plan, refit, fold, export, check, measure, and the search for the smallest model within a bound."""
