"""The first of ours that runs in a container: prepare, say hello, serve.

Started as ``PYTHON -s -c BOOT LIBRARY SDK-VERSION PRELOAD``, with the connection to
the keeper as standard input. LIBRARY is a folder with the host's ``globus_compute_sdk``
and ``dill``; PRELOAD is a JSON list of modules.
"""

from __future__ import annotations

import gc
import sys

BOOT = """\
import sys
sys.path[0] = sys.argv.pop(1)
from gc_apptainer_inside.start import main
main()
"""
"""The program, whose first argument is the folder that this package is in."""

NAME = "gc_apptainer_inside"
OLDEST_PYTHON = (3, 9)  # that the SDK's serializers work with


def main() -> None:
    if sys.version_info < OLDEST_PYTHON:
        found = "%d.%d" % sys.version_info[:2]
        sys.exit("the image has Python %s; tasks need 3.9 or newer" % found)
    del sys.path[0]  # our folder is not the task's to import from
    gc.disable()  # what is imported is not garbage, and looking for some takes time
    from . import ahead

    reader = ahead.begin()
    from . import service

    library, sdk_version, wanted = sys.argv[1:]
    del sys.argv[1:]
    service.import_all(library, sdk_version)
    ahead.end(reader)
    gc.enable()
    service.serve(sdk_version, wanted)
