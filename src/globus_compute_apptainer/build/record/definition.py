"""An image's definition file for plain Apptainer, without this package.

Pure. It asks for the same base by digest and for the same packages by version and
hash, with the tools that are at hand in such a build (apt, pip, micromamba); so it
gives an equivalent image, never the same bytes. What it cannot say exactly it says in
a comment at its top.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.build.layer import HOME, PAYLOAD
from globus_compute_apptainer.build.record import pins

if TYPE_CHECKING:
    from globus_compute_apptainer.build.record.lock import Lock

_ENVIRONMENT: Final = re.compile(re.escape(f"{HOME}/env") + r"\d*")
_CONDA: Final = f"{HOME}/conda"
_END: Final = "GC_APPTAINER_END"
_ARCHIVE: Final = re.compile(r"\.(zip|whl)(?:[?#]|$)")


def definition(lock: Lock, image_digest: str) -> str:
    """The text of the file.

    :param image_digest: of the image that it is to be equivalent to
    """
    spec = lock.spec
    agent = str(spec.get("agent", lock.base.partition(":")[0]))
    reference = str(spec.get("base_image", lock.base.partition("://")[2]))
    head = [
        f"# Equivalent of the image {image_digest},",
        "# for plain Apptainer: apptainer build image.sif image.def",
        *(f"# Not exact: {line}" for line in _inexact(lock, agent)),
        f"Bootstrap: {agent}",
        f"From: {pins.pinned_base(agent, reference, lock.base_digest)}",
    ]
    steps = [line for part in _steps(lock) for line in part]
    body = ["", "%post", "set -e", *map(_harmless, steps)] if steps else []
    paths = _paths(lock)
    tail = ["", "%environment", *(f"    export {line}" for line in paths)]
    return "\n".join([*head, *body, *(tail if paths else [])]) + "\n"


def _inexact(lock: Lock, agent: str) -> Iterator[str]:
    if pins.pinned_base(agent, "x", lock.base_digest) == "x":
        yield f"the base must be the one with digest {lock.base_digest}"
    if lock.apt:
        yield "Debian's archive keeps only the newest version of each package"
    if lock.conda is not None:
        yield "conda packages need micromamba, mamba or conda in the base image"
        yield "variables that conda packages set on activation are not set"
    if any("--hash=" not in line for line in lock.pip or ()):
        yield "some Python packages have no hash: their versions are pinned only"
    if lock.pip and lock.document.get("pip", {}).get("way") == "inside":
        yield "some Python packages were compiled in the image, and will be again"
    if lock.payload is not None:
        yield "fetching the payload needs git, or curl and tar or unzip, in the base"
    if lock.spec.get("files"):
        yield "files that the spec brought itself are not written here"
    if any("{{" in line for line in lock.spec.get("post", ())):
        yield "Apptainer substitutes {{ … }} in the lines of post"


def _steps(lock: Lock) -> Iterator[list[str]]:
    env = lock.spec.get("build_env", ())
    yield [f"export {name}={shlex.quote(value)}" for name, value in env]
    yield _apt(lock.apt)
    yield _conda(lock.conda)
    yield _pip(lock.pip, _environment(lock))
    yield _payload(lock.payload)
    yield [str(line) for line in lock.spec.get("post", ())]


def _apt(packages: tuple[str, ...]) -> list[str]:
    if not packages:
        return []
    return [
        "export DEBIAN_FRONTEND=noninteractive",
        "apt-get update",
        "apt-get install -y --no-install-recommends --allow-downgrades \\",
        *(f"    {shlex.quote(package)} \\" for package in packages[:-1]),
        f"    {shlex.quote(packages[-1])}",
        "rm -rf /var/lib/apt/lists/*",
    ]


def _conda(records: tuple[Mapping[str, Any], ...] | None) -> list[str]:
    if records is None:
        return []
    urls = [f"{one['url']}{_conda_hash(one)}" for one in records]
    return [
        *_written("/tmp/gc-explicit.txt", ["@EXPLICIT", *urls]),  # noqa: S108 - there
        "CONDA=$(command -v micromamba || command -v mamba || command -v conda)",
        f'"$CONDA" create -y -p {_CONDA} --file /tmp/gc-explicit.txt',
        "rm /tmp/gc-explicit.txt",
        f"export PATH={_CONDA}/bin:$PATH",
    ]


def _conda_hash(one: Mapping[str, Any]) -> str:
    return f"#{one['md5']}" if one.get("md5") else f"#sha256:{one['sha256']}"


def _environment(lock: Lock) -> str:
    """Where the image has its Python packages; the same place is taken here."""
    place = str(lock.document.get("pip", {}).get("environment", ""))
    return place if _ENVIRONMENT.fullmatch(place) else f"{HOME}/env"


def _pip(lines: tuple[str, ...] | None, place: str) -> list[str]:
    if not lines:
        return []
    hashed = "--require-hashes " if all("--hash=" in line for line in lines) else ""
    return [
        *_written("/tmp/gc-requirements.txt", lines),  # noqa: S108 - in the image
        f"python3 -m venv --system-site-packages --without-pip {place}",
        f"python3 -m pip --python {place}/bin/python install --no-deps "
        f"{hashed}-r /tmp/gc-requirements.txt",
        "rm /tmp/gc-requirements.txt",
    ]


def _payload(payload: Mapping[str, str] | None) -> list[str]:
    if not payload or "url" not in payload:
        return []
    url = payload["url"].partition("#")[0]
    if "commit" in payload:
        place = shlex.quote(url.removeprefix("git+"))
        return [
            f"git clone {place} {PAYLOAD}",
            f"git -C {PAYLOAD} checkout --detach {payload['commit']}",
        ]
    unpack = "unzip -q" if _ARCHIVE.search(url) else f"tar -C {PAYLOAD} -xf"
    into = f" -d {PAYLOAD}" if unpack.startswith("unzip") else ""
    lines = [f"mkdir -p {PAYLOAD}", f"curl -fsSL {shlex.quote(url)} -o /tmp/gc-payload"]
    if "sha256" in payload:
        told = f"{payload['sha256']}  /tmp/gc-payload"
        lines.append(f"echo {shlex.quote(told)} | sha256sum -c -")
    return [*lines, f"{unpack} /tmp/gc-payload{into}", "rm /tmp/gc-payload"]


def _paths(lock: Lock) -> list[str]:
    folders = [f"{_environment(lock)}/bin"] if lock.pip else []
    folders += [f"{_CONDA}/bin"] if lock.conda is not None else []
    found = [f"PATH={':'.join(folders)}:$PATH"] if folders else []
    if lock.conda is not None:
        found.append(f"CONDA_PREFIX={_CONDA}")
    if lock.payload is not None:
        found.append(f"PYTHONPATH={PAYLOAD}${{PYTHONPATH:+:$PYTHONPATH}}")
    return found


def _written(path: str, lines: tuple[str, ...] | list[str]) -> list[str]:
    return [f"cat > {path} <<'{_END}'", *lines, _END]


def _harmless(line: str) -> str:
    """Apptainer takes a line that begins with ``%`` for the next section."""
    return re.sub(r"^(?=%)", " ", line, flags=re.MULTILINE)
