"""How an image is made. Runs in the endpoint process and in ``gc-apptainer``."""
