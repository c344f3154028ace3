"""What a GGUF file holds: its header, its tensors and its tokenizer."""
