"""Folders that jobs write: what is in them, and how it is read again."""
