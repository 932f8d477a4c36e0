"""Calibration, and int8 parameters for each engine."""
