"""The command line: options in, calls of the packages, tables and documents out."""
