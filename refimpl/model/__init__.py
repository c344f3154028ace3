"""The transformer: its configuration, its operations, and the forward pass."""
