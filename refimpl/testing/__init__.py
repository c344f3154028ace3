"""For the tests of other projects: a pytest plugin, the cases in the package, and random ones."""
