"""Encoding and decoding on a GPU. Experimental: never run on a GPU.

The tests run the kernels under Triton's interpreter and hold their bytes equal to the CPU's. The
modules import torch and Triton.
"""
