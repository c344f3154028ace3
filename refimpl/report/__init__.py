"""One page about scores, prunings and evaluations, to be looked at."""
