"""The rules of a pair loss: which pairs are kept, how a kept pair weighs, and both as one spec."""
