"""The files of a model and of documents: what is read, how much of it, and what is refused."""
