"""Plain PyTorch, panel by panel: of the panels backend, and of rules of one's own."""
