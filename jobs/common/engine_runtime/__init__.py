"""The modules that run beside an engine on a server: each imports nothing of this project, and is copied there."""
