"""Whole tensors to chunks and back, on threads: match, cut, encode, decode, hash."""
