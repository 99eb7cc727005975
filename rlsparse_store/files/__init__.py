"""Checkpoints and deltas on disk: read by position, checked, written completely or not at all."""
