"""MNN: its record, export, sessions in a child process, profiles, and int8 files."""
