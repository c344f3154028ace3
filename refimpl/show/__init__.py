"""Results for eyes."""
