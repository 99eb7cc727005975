"""The vectors of the format: what they are made from, section by section of its text."""
