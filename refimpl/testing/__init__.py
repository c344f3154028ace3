"""For the tests of other projects: a pytest plugin, and the cases that travel with the package."""
