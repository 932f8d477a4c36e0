"""Recording: the user's forward runs on what stands for its values."""
