"""Conda packages: solved and installed on the host, for the image."""
