"""Base allocations, one in each file: each turns a signal of the blocks into sparsities."""
