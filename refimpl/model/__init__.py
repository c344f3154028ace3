"""What a model is: its operations, its configuration, its file, its forward pass."""
