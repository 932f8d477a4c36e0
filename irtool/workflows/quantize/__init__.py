"""The job of `irtool quantize`: calibrate, place integers, write, check, and the search for layers that stay in float."""
