"""Backends: each is the two functions `row_statistics` and `embedding_gradient`."""
