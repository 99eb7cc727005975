"""Encoding and decoding of whole tensors on threads: match, split, encode, decode, hash."""
