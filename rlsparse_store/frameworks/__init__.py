"""Arrays that share a tensor's bytes: NumPy words, or torch tensors."""
