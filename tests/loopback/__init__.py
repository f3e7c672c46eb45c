"""A real Globus Compute endpoint and SDK on one machine, with no cloud.

``cloud`` stands in for the hosted service, ``testbed`` runs a real endpoint against it.
"""
