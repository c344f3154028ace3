"""For the tests of other projects: pytest's plugin, and the cases that travel with the package."""
