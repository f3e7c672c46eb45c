"""Reads what the zygote is about to import, while it imports what comes before.

Runs in the container, in a process of its own. In a container that has just started,
whatever is read of the image is read through FUSE for the first time: a third of the
time that the imports take is waiting for that. What is not there, in another version of
Python or in another place, is left out; it is only for speed.
"""

from __future__ import annotations

# Nothing else, which would have to be waited for.
import os
import sys

# Of the standard library, about in the order of their import.
NAMES = """
contextlib collections/__init__ keyword operator reprlib functools types __future__
importlib/__init__ warnings importlib/_abc importlib/util importlib/machinery
json/__init__ json/decoder re/__init__ enum re/_compiler re/_parser re/_constants
re/_casefix copyreg json/scanner json/encoder
platform socket selectors collections/abc struct signal traceback linecache tokenize
token textwrap typing dataclasses copy weakref _weakrefset inspect ast dis opcode
threading logging/__init__ string multiprocessing/__init__ multiprocessing/context
multiprocessing/process multiprocessing/reduction pickle _compat_pickle
ctypes/__init__ ctypes/_endian _pyio locale tempfile shutil fnmatch bz2 _compression
lzma random bisect pathlib ntpath urllib/__init__ urllib/parse ipaddress
re sre_compile sre_parse sre_constants hashlib
"""


def begin() -> int:
    """Have a process read them; its process id, for :func:`end`, or 0."""
    try:
        child = os.fork()
    except OSError:
        return 0
    if not child:
        try:
            for source, bytecode in files():
                _read(source, bytecode)
        finally:
            os._exit(0)
    return child


def end(child: int) -> None:
    """All is imported: nobody needs the process any more."""
    if child:
        os.kill(child, 9)
        os.waitpid(child, 0)


def files() -> list[tuple[str, str]]:
    """Their sources, which an import looks at, and their bytecode, which it reads."""
    library, tag = os.path.dirname(os.__file__), sys.implementation.cache_tag
    found = []
    for name in NAMES.split():
        folder, _, stem = name.rpartition("/")
        place = os.path.join(library, folder)
        compiled = os.path.join(place, "__pycache__", "%s.%s.pyc" % (stem, tag))
        found.append((os.path.join(place, stem + ".py"), compiled))
    return found


def _read(source: str, bytecode: str) -> None:
    try:
        os.stat(source)
        descriptor = os.open(bytecode, os.O_RDONLY)
        while os.read(descriptor, 1 << 20):
            pass
        os.close(descriptor)
    except OSError:
        return
