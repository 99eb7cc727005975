"""Arrays over a tensor's bytes: NumPy arrays or torch tensors."""
