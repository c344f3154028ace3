"""Base allocations, one in each file: from what a method ranks blocks by to their sparsities."""
