"""The pruning job: calibrate, decide, write, advance; and the inspection of a model."""
