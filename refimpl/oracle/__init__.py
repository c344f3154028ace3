"""For other projects: cases to check an implementation against, and where it first differs."""
