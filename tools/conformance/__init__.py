"""Readers, mutants and random edits: whether the readers of deltas agree with the text."""
