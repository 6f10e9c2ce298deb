"""Triton kernels of numllm, one file per family. They know torch and triton, never numllm."""
