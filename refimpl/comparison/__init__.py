"""Whether two computations agree at each trace point, and the usual causes if they do not."""
