"""Small Python packages, made by the test that uses them."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import textwrap
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

# A build backend that needs nothing: it runs hook(), then makes a wheel.
BACKEND = """
import os, sys, zipfile
def hook():
    {hook}
def build_wheel(folder, config=None, metadata=None):
    files = {{"{module}.py": "seen = %r\\n" % (hook(),)}}
    info = "{module}-{version}.dist-info"
    files[info + "/METADATA"] = (
        "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    )
    files[info + "/WHEEL"] = (
        "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    )
    files[info + "/RECORD"] = "".join("%s,,\\n" % name for name in list(files))
    file = "{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, file), "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return file
"""


PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    needs: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    tag: str = "py3-none-any",
) -> Path:
    """By default with a module that says its version."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    given = {f"{module}.py": f"version = {version!r}\n"} if files is None else files
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents = {
        **{file.replace("INFO", info): text for file, text in given.items()},
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {n}\n" for n in needs),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = "".join(f"{file},{_hash(text)},\n" for file, text in contents.items())
    path = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in {**contents, f"{info}/RECORD": record}.items():
            wheel.writestr(file, text)
    return path


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def source_files(name: str, version: str, hook: str) -> dict[str, str]:
    module = name.replace("-", "_")
    body = textwrap.indent(textwrap.dedent(hook).strip(), "    ").strip()
    backend = BACKEND.format(hook=body, module=module, name=name, version=version)
    return {"pyproject.toml": PYPROJECT, "backend.py": backend}


def make_sdist(folder: Path, name: str, version: str, hook: str = "return 1") -> None:
    """What ``hook`` returns is then ``MODULE.seen``."""
    top = f"{name.replace('-', '_')}-{version}"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {**source_files(name, version, hook), "PKG-INFO": about}
    with tarfile.open(folder / f"{top}.tar.gz", "w:gz") as archive:
        for file, text in files.items():
            entry = tarfile.TarInfo(f"{top}/{file}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
