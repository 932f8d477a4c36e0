"""Thin training loops: sparse, finetune, distil; and their data."""
