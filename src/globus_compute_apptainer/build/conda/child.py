"""Solving and installing conda packages, in a process of its own.

Started by :mod:`.conda` on the host, as ``python -m … REQUEST ANSWER``: two JSON files.
A process of its own, so that a deadline can end it and a crash of the solver's native
code takes no endpoint with it. Imports nothing of ours.

Packages come from channels of the user's choice. None of their code runs here: link
scripts are not executed. Nor may what they *say* lead out of the prefix: names, paths
and links of every package are checked before it is linked (rattler trusts them).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import sys
import time
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import rattler
from rattler import exceptions

_WORD = re.compile(r"[A-Za-z0-9_.+!~-]+")
_FULL = re.compile(r"os error (28|122)\b|[Nn]o space left|[Qq]uota exceeded")
_MISMATCH = re.compile(r"(hash|checksum|sha256|md5)\b.*mismatch|mismatch.*\b(hash|sha)")
_TELL_SECONDS = 0.3
# Links into the cache would let what runs in a build change later images.
_LINKING = "allow-hard-links = false\n"


class Mismatch(Exception):  # noqa: N818 - as below
    """A file that is not what its channel says."""


class Untrusted(Exception):  # noqa: N818 - a verdict on a package
    """A package that says what no package may say."""


async def solve(request: dict[str, Any]) -> dict[str, Any]:
    """The records that satisfy the request, as plain JSON."""
    action = "no-cache" if request["fresh"] else "cache-or-fetch"
    notes = []
    try:
        records = await _solved(request, action)
    except (exceptions.GatewayError, exceptions.FetchRepoDataError) as error:
        if _is_missing(error):
            raise
        try:
            records = await _solved(request, "force-cache-only")
        except exceptions.GatewayError:
            raise error from None
        first = str(error).partition("\n")[0]
        notes.append(
            f"a channel cannot be reached ({first}); solved with what is "
            "known of it from before"
        )
    for record in records:
        _check_record(record, request["channels"])
    return {"packages": [_plain(record) for record in records], "notes": notes}


async def _solved(request: dict[str, Any], action: Any) -> list[Any]:
    gateway = rattler.Gateway(
        cache_dir=Path(request["repodata"]),
        default_config=rattler.SourceConfig(cache_action=action),
        client=rattler.Client.default_client(),
    )
    virtual = [
        rattler.GenericVirtualPackage(
            rattler.PackageName(name),
            rattler.Version(version),
            rattler.BuildString(build),
        )
        for name, version, build in request["virtual_packages"]
    ]
    return await rattler.solve(
        request["channels"],
        request["specs"],
        gateway=gateway,
        platforms=[request["subdir"], "noarch"],
        virtual_packages=virtual,
        constraints=request["constraints"],
        timeout=timedelta(seconds=request["timeout"]),
        channel_relations="disabled",
    )


def _plain(record: Any) -> dict[str, Any]:
    """What the lock holds of a package, and installing needs."""
    told: dict[str, Any] = {
        "name": record.name.normalized,
        "version": str(record.version),
        "build": str(record.build),
        "build_number": record.build_number,
        "subdir": record.subdir,
        "channel": record.channel.rstrip("/"),
        "url": record.url,
        "size": record.size,
        "sha256": record.sha256.hex() if record.sha256 else None,
        "md5": record.md5.hex() if record.md5 else None,
        "noarch": _noarch(record.noarch),
        "depends": list(record.depends),
        "python_site_packages_path": record.python_site_packages_path,
        "license": record.license,
    }
    return {name: value for name, value in told.items() if value not in (None, [])}


def _noarch(kind: Any) -> str | None:
    if kind.python:
        return "python"
    return "generic" if kind.generic else None


def _record(told: dict[str, Any]) -> Any:
    package = rattler.PackageRecord(
        told["name"],
        told["version"],
        rattler.BuildString(told["build"]),
        told["build_number"],
        told["subdir"],
        noarch=told.get("noarch"),
        depends=told.get("depends", []),
        sha256=bytes.fromhex(told["sha256"]) if "sha256" in told else None,
        md5=bytes.fromhex(told["md5"]) if "md5" in told else None,
        size=told.get("size"),
        python_site_packages_path=told.get("python_site_packages_path"),
    )
    file_name = told["url"].rpartition("/")[2]
    return rattler.RepoDataRecord(package, file_name, told["url"], told["channel"])


async def install(request: dict[str, Any]) -> dict[str, Any]:
    """Fetch what the cache lacks, and put all into the prefix."""
    records = [_record(told) for told in request["packages"]]
    for record in records:
        _check_record(record, request["channels"])
        _check_local_file(record)
    cache = Path(request["cache"])
    follower = _Follower(cache, Path(request["answer"]), records)
    await rattler.install(
        records,
        request["prefix"],
        platform=rattler.Subdir(request["subdir"]),
        execute_link_scripts=False,
        alternative_target_prefix=request["inside"],
        installed_packages=[],
        reporter=follower,
        client=rattler.Client.default_client(),
        config=rattler.Config.from_toml(_LINKING),
        # The same name may mean something else in another channel.
        package_cache=rattler.PackageCache(cache).with_cached_origin(),
    )
    return {}


class _Follower:
    """Tells the progress, and looks at every package before it is linked."""

    def __init__(self, cache: Path, answer: Path, records: list[Any]) -> None:
        self._cache, self._answer = cache, answer
        self._files = {r.name.normalized: _stem(r) for r in records}
        self._bytes: dict[int, int] = {}
        self._linked, self._told = 0, 0.0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *_: 0

    def on_download_start(self, entry: int) -> int:
        self._bytes[entry] = 0
        return entry

    def on_populate_cache_start(self, operation: int, _name: str) -> int:
        return operation

    def on_download_progress(self, entry: int, done: int, _total: int | None) -> None:
        self._bytes[entry] = done
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._told = time.monotonic()
            _tell("progress", sum(self._bytes.values()), None, "bytes", "fetched")

    def on_link_start(self, operation: int, name: str) -> int:
        """Comes right before rattler reads the package's own list of files."""
        try:
            stem = self._files[name]
            # The rest of the name is a hash of where it came from.
            hashed = re.compile(re.escape(stem) + r"-[0-9a-f]{64}")
            found = [p for p in self._cache.iterdir() if hashed.fullmatch(p.name)]
            if not found:
                raise Untrusted(f"{stem} is not where packages are unpacked")
            for folder in found:
                check_package(folder)
        except BaseException as error:  # noqa: BLE001 - rattler would go on
            _answer(self._answer, _failure(error, name))
            os._exit(3)
        return operation

    def on_link_complete(self, _index: int) -> None:
        self._linked += 1
        _tell("progress", self._linked, len(self._files), "packages", "installed")


def _stem(record: Any) -> str:
    return f"{record.name.normalized}-{record.version}-{record.build}"


def _check_record(record: Any, channels: list[str]) -> None:
    """Refuse a record whose words would become paths elsewhere."""
    name = record.name.normalized
    for word in (name, str(record.version), str(record.build), record.file_name):
        if not _WORD.fullmatch(word):
            raise Untrusted(f"package {name} has the name or version {word!r}")
    packages = record.python_site_packages_path
    if packages is not None and not _is_inside(packages):
        raise Untrusted(f"package {name} has the path {packages!r}")
    local = [url for url in channels if url.startswith("file://")]
    if not record.url.startswith(("https://", "http://", *local)):
        raise Untrusted(f"package {name} is said to be at {record.url!r}")


def _check_local_file(record: Any) -> None:
    """Rattler checks what it downloads, but no files."""
    url = urlsplit(record.url)
    wanted = record.sha256 or record.md5
    if url.scheme != "file" or not wanted:
        return
    hashed = hashlib.new("sha256" if record.sha256 else "md5", usedforsecurity=False)
    with Path(unquote(url.path)).open("rb") as file:
        while chunk := file.read(1 << 20):
            hashed.update(chunk)
    if hashed.digest() != wanted:
        raise Mismatch(
            f"failed to fetch {record.file_name}: it has another checksum "
            "than its channel says"
        )


def check_package(folder: Path) -> None:
    """Refuse an unpacked package whose own lists lead out of it, or of the prefix.

    :raises Untrusted: naming what it says
    """
    info = folder / "info"
    if (info / "paths.json").exists():
        listed = json.loads((info / "paths.json").read_text(encoding="utf-8"))["paths"]
    else:
        lines = (info / "files").read_text(encoding="utf-8").splitlines()
        listed = [{"_path": line.strip()} for line in lines if line.strip()]
    _check_paths(folder, listed)
    link = info / "link.json"
    if link.exists():
        told = json.loads(link.read_text(encoding="utf-8")).get("noarch") or {}
        for point in told.get("entry_points") or []:
            command = point.partition("=")[0].strip()
            if not _WORD.fullmatch(command) or command in (".", ".."):
                raise Untrusted(f"{folder.name} has the entry point {point!r}")


def _check_paths(folder: Path, listed: list[dict[str, Any]]) -> None:
    folders = set()
    for entry in listed:
        path, kind = entry["_path"], entry.get("path_type", "")
        if not _is_inside(path):
            raise Untrusted(f"{folder.name} has the path {path!r}")
        # A copy of a link would be a copy of what it leads to, on this machine.
        if kind not in ("softlink", "") and (folder / path).is_symlink():
            raise Untrusted(f"{folder.name} has a link that it calls a file: {path!r}")
        folders.add(path.rpartition("/")[0])
    top = folder.resolve()
    for inner in folders:
        if (top / inner).resolve() != top / inner:
            raise Untrusted(
                f"{folder.name} has the path {inner + '/'!r}, behind a link"
            )


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return (
        path.isprintable()
        and bool(pure.parts)
        and not pure.is_absolute()
        and ".." not in pure.parts
    )


def _is_missing(error: Exception) -> bool:
    return "could not find subdir" in str(error)


def _failure(error: BaseException, name: str = "") -> dict[str, Any]:
    """Kind and words of a failure; the parent finds the code."""
    words = str(error).strip() or type(error).__name__
    kind = type(error).__name__
    if _FULL.search(words):
        kind = "DiskFull"
    elif kind == "InstallerError" and _MISMATCH.search(words):
        kind = "Mismatch"
    elif kind == "GatewayError" and _is_missing(error):  # type: ignore[arg-type]
        kind = "NoChannel"
    elif isinstance(error, Untrusted):
        kind = "Untrusted"
    return {"error": kind, "words": words, "package": name}


def _tell(*what: Any) -> None:
    print("@@" + json.dumps(what), flush=True)  # noqa: T201 - to our parent


def _answer(path: Path, told: dict[str, Any]) -> None:
    """Written whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(told), encoding="utf-8")
    part.replace(path)


def main() -> int:
    os.umask(0o022)
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = Path(sys.argv[2])
    request["answer"] = str(answer)
    steps = {"solve": solve, "install": install}
    try:
        told = asyncio.run(steps[request["action"]](request))
    except Exception as error:  # noqa: BLE001 - told to the parent in words
        told = _failure(error)
    _answer(answer, {**told, "rattler": rattler.__version__})
    return 3 if "error" in told else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Native threads that still run can crash an interpreter that takes itself apart.
    os._exit(status)
