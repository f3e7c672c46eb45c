"""What runs as root inside an image: Debian packages, post, flat images."""
