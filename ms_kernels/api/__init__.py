"""The public functions and modules."""
