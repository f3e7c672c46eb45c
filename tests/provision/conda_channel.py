"""A real conda channel of small packages, made by the test that uses it.

Packages are written as conda-build writes them (``info/index.json``,
``info/paths.json``, ``.tar.bz2`` or ``.conda``), the channel is indexed by
``repodata.json``, and served as ``file://`` or over loopback HTTP(S).
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import ssl
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLACEHOLDER = "/opt/" + "placehold_" * 20
"""The prefix that packages were built for, long as conda-build makes it."""


@dataclass
class Package:
    """One package to write.

    :param files: path in the prefix → contents; ``@PREFIX@`` in them stands for the
        prefix, and makes the file one that conda rewrites
    :param links: path in the prefix → target of a symbolic link
    :param binary: those of ``files`` whose prefix is rewritten as in a binary
    :param entry_points: of a noarch Python package (``tool = module:main``)
    """

    name: str
    version: str = "1.0"
    build: str = "0"
    depends: list[str] = field(default_factory=list)
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    binary: frozenset[str] = frozenset()
    executable: frozenset[str] = frozenset()
    noarch: str | None = None
    entry_points: list[str] = field(default_factory=list)
    subdir: str = "linux-64"
    suffix: str = ".tar.bz2"
    constrains: list[str] = field(default_factory=list)
    site_packages: str | None = None

    @property
    def file_name(self) -> str:
        return f"{self.name}-{self.version}-{self.build}{self.suffix}"

    def index(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "build_number": 0,
            "depends": self.depends,
            "constrains": self.constrains,
            "subdir": self.subdir,
            "arch": None,
            "platform": None,
        }
        if self.noarch:
            found["noarch"] = self.noarch
        if self.site_packages:
            found["python_site_packages_path"] = self.site_packages
        return found

    def write(self, folder: Path) -> Path:
        target = folder / self.subdir / self.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        contents, paths = self._contents()
        info: dict[str, str] = {
            "info/index.json": json.dumps(self.index()),
            "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}),
            "info/files": "".join(f"{path['_path']}\n" for path in paths),
            "info/about.json": "{}",
        }
        if self.noarch == "python":
            told = {"type": "python", "entry_points": self.entry_points}
            link = {"noarch": told, "package_metadata_version": 1}
            info["info/link.json"] = json.dumps(link)
        told_info = {name: text.encode() for name, text in info.items()}
        if self.suffix == ".tar.bz2":
            with tarfile.open(target, "w:bz2") as archive:
                _fill(archive, told_info, {}, frozenset())
                _fill(archive, contents, self.links, self.executable)
        else:
            self._write_conda(target, told_info, contents)
        return target

    def _contents(self) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
        contents, paths = {}, []
        for path, text in self.files.items():
            data = text.encode() if isinstance(text, str) else text
            with_prefix = data.replace(b"@PREFIX@", PLACEHOLDER.encode())
            contents[path] = with_prefix
            told: dict[str, Any] = {
                "_path": path,
                "path_type": "hardlink",
                "sha256": hashlib.sha256(with_prefix).hexdigest(),
                "size_in_bytes": len(with_prefix),
            }
            if with_prefix != data:
                told["prefix_placeholder"] = PLACEHOLDER
                told["file_mode"] = "binary" if path in self.binary else "text"
            paths.append(told)
        for path in self.links:
            empty = hashlib.sha256(b"").hexdigest()
            paths.append(
                {
                    "_path": path,
                    "path_type": "softlink",
                    "sha256": empty,
                    "size_in_bytes": 0,
                }
            )
        return contents, paths

    def _write_conda(
        self, target: Path, info: dict[str, bytes], contents: dict[str, bytes]
    ) -> None:
        """The newer format: a zip of two zstd-compressed tars."""
        stem = target.name.removesuffix(".conda")
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("metadata.json", '{"conda_pkg_format_version": 2}')
            parts = (("pkg", contents, self.links), ("info", info, {}))
            for part, files, links in parts:
                raw = io.BytesIO()
                with tarfile.open(fileobj=raw, mode="w") as tar:
                    _fill(tar, files, links, self.executable)
                archive.writestr(f"{part}-{stem}.tar.zst", _zstd(raw.getvalue()))


def _zstd(data: bytes) -> bytes:
    """A zstd frame (RFC 8878) of blocks that are not compressed."""
    header = b"\x28\xb5\x2f\xfd\xe0" + len(data).to_bytes(8, "little")
    size = 128 * 1024
    blocks = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    last = len(blocks) - 1
    heads = (len(b) << 3 | (n == last) for n, b in enumerate(blocks))
    pairs = zip(heads, blocks, strict=True)
    return header + b"".join(h.to_bytes(3, "little") + b for h, b in pairs)


def _fill(
    archive: tarfile.TarFile,
    files: Mapping[str, bytes],
    links: Mapping[str, str],
    executable: frozenset[str],
) -> None:
    for path, data in files.items():
        entry = tarfile.TarInfo(path)
        entry.size = len(data)
        entry.mode = 0o755 if path in executable or path.startswith("bin/") else 0o644
        archive.addfile(entry, io.BytesIO(data))
    for path, to in links.items():
        entry = tarfile.TarInfo(path)
        entry.type, entry.linkname = tarfile.SYMTYPE, to
        archive.addfile(entry)


class Channel:
    """A directory of packages with its index; ``url`` is its ``file://`` one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for subdir in ("noarch", "linux-64", "linux-aarch64"):
            (folder / subdir).mkdir(parents=True, exist_ok=True)
        self._told: dict[str, dict[str, Any]] = {}
        self._index()

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def add(self, *packages: Package) -> None:
        for package in packages:
            path = package.write(self.folder)
            data = path.read_bytes()
            hashes = {
                "md5": hashlib.md5(data).hexdigest(),
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
            }
            key = f"{package.subdir}/{path.name}"
            self._told[key] = {**package.index(), **hashes}
        self._index()

    def remove(self, package: Package) -> None:
        (self.folder / package.subdir / package.file_name).unlink()
        del self._told[f"{package.subdir}/{package.file_name}"]
        self._index()

    def _index(self) -> None:
        for folder in self.folder.iterdir():
            found: dict[str, Any] = {"packages": {}, "packages.conda": {}}
            for key, told in self._told.items():
                subdir, _, name = key.partition("/")
                kind = "packages.conda" if name.endswith(".conda") else "packages"
                if subdir == folder.name:
                    found[kind][name] = told
            index = {"info": {"subdir": folder.name}, "repodata_version": 1, **found}
            (folder / "repodata.json").write_text(json.dumps(index))


class _Handler(http.server.SimpleHTTPRequestHandler):
    seen: list[str]

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        self.seen.append(f"{code} {self.command} {self.path}")

    def log_message(self, *args: Any) -> None:
        return


@contextmanager
def served(
    folder: Path, *, certificate: Path | None = None
) -> Iterator[tuple[str, list[str]]]:
    """Serve a directory on loopback; gives its URL, and the requests as they come.

    :param certificate: a PEM file with key and certificate: then over TLS
    """
    seen: list[str] = []
    handler = type("Handler", (_Handler,), {"seen": seen})
    made = functools.partial(handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), made)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"{scheme}://localhost:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
