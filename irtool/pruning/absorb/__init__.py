"""Absorption: constants that removed channels emit are added to the next bias."""
