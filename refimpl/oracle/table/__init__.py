"""The steps of a case: how each is computed from the steps before it."""
