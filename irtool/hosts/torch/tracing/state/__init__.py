"""The state of a model while it is traced: watched, kept and put back."""
