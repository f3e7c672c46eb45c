"""On-demand Apptainer containers for Globus Compute.

Importing this package is free of side effects and of Parsl, the endpoint and the
SDK: it is imported at the start of every interpreter of an endpoint's environment
(see :mod:`.endpoint.register`).
"""

__version__ = "0.1.0"
