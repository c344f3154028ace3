"""The algorithm as it runs on one model: each step with its formula and the numbers of that run."""
