"""Payloads: fetched and unpacked on the host, and what they ask for."""
