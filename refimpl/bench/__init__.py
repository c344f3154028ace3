"""A comparison of allocations: a loop over cells of score, allocate, prune and evaluate."""
