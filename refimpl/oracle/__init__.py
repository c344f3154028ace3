"""For other projects: cases to hold an implementation against, and where it first went wrong."""
