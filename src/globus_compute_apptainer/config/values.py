"""Values of the ``containers:`` block: what YAML gives, checked and converted.

Runs in the endpoint process; pure. Each takes a value and returns what the key means
or raises :class:`~..errors.ConfigError` without the key, which the caller knows.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from globus_compute_apptainer.errors import ConfigError
from globus_compute_apptainer.spec.fields import module
from globus_compute_apptainer.spec.matchspec import channel
from globus_compute_apptainer.spec.refusal import Refusal

# The options of `apptainer exec` that an admin may add. Others change what the worker
# relies on (environment, binds, working directory, process ids) or what the image is.
_OPTIONS = frozenset(
    "--apply-cgroups --blkio-weight --blkio-weight-device --cpu-shares --cpus"
    " --cpuset-cpus --cpuset-mems --memory --memory-reservation --memory-swap"
    " --oom-kill-disable --pids-limit --dns --hostname --ipc --net --network"
    " --network-args --uts --userns --no-home --no-privs --drop-caps --nv --nvccli"
    " --rocm --scratch --writable-tmpfs".split()
)
_ISOLATION = ("worker", "task")
_STRATEGIES = ("auto", "layered", "flat")
_JOURNALS = ("auto", "on", "off")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")
_MIRROR = re.compile(r"(https?://[^/\s]+|file://)(/[^\s?#]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def wrong(key: str, value: object, expected: str) -> ConfigError:
    got = type(value).__name__
    return ConfigError(f"expected {expected}, got {got} {value!r:.60}", key=key)


def text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise wrong("", value, "a text")
    return value


def texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise wrong("", value, "a list of texts")
    return tuple(text(item) for item in value)


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise wrong("", value, "true or false")
    return value


def count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise wrong("", value, "a whole number from 1 on")
    return value


def seconds(value: object) -> float:
    match = _DURATION.fullmatch(str(value)) if not isinstance(value, bool) else None
    if match is None or float(match[1]) <= 0:
        raise wrong("", value, "a duration such as 90s, 30m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def size(value: object) -> int:
    match = _SIZE.fullmatch(str(value)) if not isinstance(value, bool) else None
    if match is None or float(match[1]) <= 0:
        raise wrong("", value, "a size such as 500MB, 20GB or 2TiB")
    unit = 1024 if match[3] else 1000
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * unit**power)


def environment(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise wrong("", value, "a mapping of names to texts")
    for name, content in value.items():
        if not _VARIABLE.fullmatch(text(name)) or "\n" in text(content):
            raise wrong("", {name: content}, "a variable's name and a text of one line")
    return tuple(sorted(value.items()))


def isolation(value: object) -> str:
    if value not in _ISOLATION:
        raise wrong("", value, "one of " + ", ".join(_ISOLATION))
    return str(value)


def modules(value: object) -> tuple[str, ...]:
    """Names of Python modules."""
    return tuple(_module(name) for name in texts(value))


def _module(name: str) -> str:
    try:
        return module(name)
    except Refusal as refusal:
        hint = refusal.hint
        raise ConfigError(f"{name!r:.80} {refusal.reason}", hint=hint) from None


def node_folder(value: object) -> str:
    """A folder of compute nodes; variables in it are theirs."""
    if not text(value).startswith(("/", "$")):
        raise wrong("", value, "an absolute path, or $NAME of a variable of the nodes")
    return text(value)


def strategy(value: object) -> str:
    if value not in _STRATEGIES:
        raise wrong("", value, "one of " + ", ".join(_STRATEGIES))
    return str(value)


def journal(value: object) -> str:
    """YAML reads a bare ``on`` as true."""
    written = ("off", "on")[value] if isinstance(value, bool) else value
    if written not in _JOURNALS:
        raise wrong("", value, "one of " + ", ".join(_JOURNALS))
    return str(written)


def hosts(value: object) -> tuple[str, ...]:
    for host in texts(value):
        if not _HOST.fullmatch(host):
            raise wrong("", host, "host or host:port, without a scheme")
    return texts(value)


def channels(value: object) -> tuple[str, ...]:
    """Conda channels in normal form; ``file://`` ones too, which only admins name."""
    return tuple(_channel(item) for item in texts(value))


def mirrors(value: object) -> tuple[tuple[str, str], ...]:
    """Conda channels, and the URLs they are had from; those may hold credentials."""
    if not isinstance(value, Mapping):
        raise wrong("", value, "a mapping of channels to URLs")
    for url in value.values():
        if not _MIRROR.fullmatch(text(url)):
            raise wrong("", "…", "a URL: https://…, http://… or file:///…")
    return tuple((_channel(name), url.rstrip("/")) for name, url in value.items())


def mirror(value: object) -> str:
    """The URL of a Debian mirror; it stays in images, so it holds no credentials."""
    url = text(value)
    if not _MIRROR.fullmatch(url) or "@" in url:
        raise wrong("", "…", "a URL without credentials: https://…, http://…")
    return url.rstrip("/")


def _channel(value: object) -> str:
    name = text(value)
    if name.startswith("file:///"):
        return name.rstrip("/")
    try:
        return channel(name)
    except Refusal as refusal:
        raise ConfigError(
            f"{name.rpartition('@')[2]!r} {refusal.reason}",
            hint="a name, or a URL without credentials: https://…, file:///…",
        ) from None


def options(value: object) -> tuple[str, ...]:
    for option in texts(value):
        name = option.split("=", 1)[0]
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            raise ConfigError(
                f"the option {option!r} cannot be passed to apptainer exec here",
                hint="allowed, as --name or --name=value: "
                + ", ".join(sorted(_OPTIONS)),
                nearest=near[0] if near else "",
            )
    return texts(value)
