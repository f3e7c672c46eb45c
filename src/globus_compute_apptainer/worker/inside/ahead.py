"""Reads what the zygote is about to import, while it imports what comes before.

Runs in the container, in a process of its own. In a container that has just started,
whatever is read of the image is read through FUSE for the first time: a third of the
time that the imports take is waiting for that. What is not there, in another version of
Python or in another place, is left out; it is only for speed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import Iterator, Optional, Tuple

# Of the standard library, about in the order of their import.
NAMES = """
contextlib collections/__init__ keyword operator reprlib functools types __future__
importlib/__init__ warnings importlib/_abc importlib/util importlib/machinery
json/__init__ json/decoder re/__init__ enum re/_compiler re/_parser re/_constants
re/_casefix re sre_compile sre_parse sre_constants copyreg json/scanner json/encoder
platform socket selectors collections/abc struct signal traceback linecache tokenize
token textwrap typing dataclasses copy weakref _weakrefset inspect ast dis opcode
threading logging/__init__ string multiprocessing/__init__ multiprocessing/context
multiprocessing/process multiprocessing/reduction pickle _compat_pickle
ctypes/__init__ ctypes/_endian _pyio locale tempfile shutil fnmatch bz2 _compression
lzma random bisect hashlib pathlib ntpath urllib/__init__ urllib/parse ipaddress
"""


def begin() -> Optional[int]:
    """Have a process read them; its process id, for :func:`end`."""
    with contextlib.suppress(OSError):
        child = os.fork()
        if child:
            return child
        try:
            for source, bytecode in files():
                _read(source, bytecode)
        finally:
            os._exit(0)
    return None


def end(child: Optional[int]) -> None:
    """All is imported: nobody needs the process any more."""
    if child is not None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def files() -> Iterator[Tuple[str, str]]:
    """Their sources, which an import looks at, and their bytecode, which it reads."""
    library, tag = os.path.dirname(os.__file__), sys.implementation.cache_tag
    for name in NAMES.split():
        folder, _, stem = name.rpartition("/")
        place = os.path.join(library, folder)
        compiled = os.path.join(place, "__pycache__", "%s.%s.pyc" % (stem, tag))
        yield os.path.join(place, stem + ".py"), compiled


def _read(source: str, bytecode: str) -> None:
    with contextlib.suppress(OSError):
        os.stat(source)
        descriptor = os.open(bytecode, os.O_RDONLY)
        while os.read(descriptor, 1 << 20):
            pass
        os.close(descriptor)
