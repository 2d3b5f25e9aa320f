"""Each file is run by itself; retrieval/ is a trainer."""
