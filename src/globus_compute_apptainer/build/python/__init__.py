"""Python packages: one virtual environment over the base's own Python."""
