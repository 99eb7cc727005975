"""Encoding and decoding on a GPU. The modules import torch and Triton."""
