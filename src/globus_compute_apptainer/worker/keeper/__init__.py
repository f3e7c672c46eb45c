"""The keeper: one process per worker pool and node that owns the pool's containers.

Runs on the host, apart from the workers and in a session of its own, so that no
worker's death touches a container that others use. It starts when the first worker
needs a container and ends with the process that started the workers, HTEX's manager.
It imports little, since the first task waits for it.
"""
