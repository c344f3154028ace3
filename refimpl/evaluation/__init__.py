"""What a model is worth: log likelihoods, perplexity, multiple choice."""
