"""What is wanted: container specs and policy. Pure: no files, no processes."""
