"""What a model is worth: log likelihoods and perplexity."""
