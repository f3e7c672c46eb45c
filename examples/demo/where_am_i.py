"""The demo's task. Only the function's source is sent, so its imports are inside."""
# ruff: noqa: PLC0415


def where_am_i(greeting: str = "hello") -> dict:
    import importlib.util
    import os
    import pathlib
    import platform

    import pandas

    release = pathlib.Path("/etc/os-release").read_text().splitlines()
    facts = dict(line.split("=", 1) for line in release if "=" in line)
    endpoint = importlib.util.find_spec("globus_compute_endpoint")
    return {
        "greeting": greeting,
        "pandas": pandas.__version__,
        "sum": int(pandas.Series([1, 2, 39]).sum()),
        "python": platform.python_version(),
        "os": facts["PRETTY_NAME"].strip('"'),
        "image": os.environ.get("APPTAINER_CONTAINER", ""),
        "endpoint_importable": endpoint is not None,
        "process": os.getpid(),
    }
