"""Triton: the server, the model that it runs, and what is put into its repository."""
