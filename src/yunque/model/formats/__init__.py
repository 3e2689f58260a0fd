"""Checkpoint files of each format: what they hold is known and checked before any number is read."""
