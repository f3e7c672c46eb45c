"""The ``gc-apptainer`` command: one short module per group of verbs.

Runs on the endpoint's machine, in a person's shell. Results go to standard output,
everything else (progress, errors) to standard error.
"""
