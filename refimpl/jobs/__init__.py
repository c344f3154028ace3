"""The long computations: pass over the blocks, one block in memory at a time."""
