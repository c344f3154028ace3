"""Whether two computations agree at each trace point, and the usual causes where they do not."""
