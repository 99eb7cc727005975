"""Encoding and decoding on a GPU. Experimental: never run on a GPU.

Work on every word or on every changed word runs in Triton kernels, launched for several chunks at
once. Choices that depend on a histogram are made on the CPU, by the code that it uses for itself.
Words are one-dimensional torch tensors of int8, int16 or int32. The tests run the kernels under
Triton's interpreter and hold their bytes equal to the CPU's. The modules import torch and Triton.
"""
