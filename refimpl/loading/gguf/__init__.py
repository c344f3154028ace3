"""GGUF files: their header, config, tensors and tokenizer, as a Hugging Face folder has them."""
