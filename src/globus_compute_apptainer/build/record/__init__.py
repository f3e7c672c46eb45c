"""What an image was made from: locks, SBOM, definition file."""
