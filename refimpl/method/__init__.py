"""The method: perturbations, absorption, signals and allocations."""
