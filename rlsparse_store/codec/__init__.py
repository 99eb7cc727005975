"""Encoding and decoding of one chunk."""
