"""Where the zeros go: counts, scores and keep decisions; arrays in, arrays out."""
