"""Benchmarks of numllm against its peers; benchmarks/README.md says how to run them."""
