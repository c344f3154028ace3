"""From files to a `Model`: families, `config.json`, tensors; strict about every key and tensor."""
