"""Tables and texts of results, for people."""
