"""Base images: resolved, pulled once, kept by digest."""
