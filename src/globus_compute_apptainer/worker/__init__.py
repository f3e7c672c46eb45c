"""Where tasks run: the worker process on a compute node, and the container."""
