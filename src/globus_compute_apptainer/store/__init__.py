"""Where images are kept. Runs in the endpoint process and in ``gc-apptainer``."""
