"""The SDK's serializers, importable in an image that has nothing of Globus.

Runs in the zygote. The library is a folder with the host's ``globus_compute_sdk`` and
``dill``. It goes *last* on ``sys.path``, so that the image's own ``dill`` wins. But
``globus_compute_sdk`` is always the library's, since the wire format must be the
endpoint's, and its ``__init__``, which needs all of Globus, never runs.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from typing import Any

SDK_MODULES = {
    "client": ("Client",),
    "executor": ("Executor",),
    "mpi_function": ("MPIFunction",),
    "shell_function": ("ShellFunction", "ShellResult"),
}


def install_library(library: str, sdk_version: str) -> None:
    """Make the host's serializers importable without the rest of Globus."""

    def lazily(name: str) -> Any:
        for module, names in SDK_MODULES.items():
            if name in names:
                found = importlib.import_module("globus_compute_sdk.sdk." + module)
                return getattr(found, name)
        raise AttributeError("module 'globus_compute_sdk' has no %r" % name)

    for name in ("globus_compute_sdk", "globus_compute_sdk.sdk"):
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [os.path.join(library, *name.split("."))]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    package: Any = sys.modules["globus_compute_sdk"]
    package.sdk = sys.modules["globus_compute_sdk.sdk"]
    package.__version__ = sdk_version
    package.__getattr__ = lazily
    sys.path.append(library)
    if sys.version_info < (3, 11) and not importlib.util.find_spec("exceptiongroup"):
        stub: Any = types.ModuleType("exceptiongroup")
        stub.ExceptionGroup = type("ExceptionGroup", (Exception,), {})
        sys.modules["exceptiongroup"] = stub
