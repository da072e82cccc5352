"""Triton: the server, the model that it runs, its repository, and clients of both."""
