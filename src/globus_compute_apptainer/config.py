"""The ``containers:`` block of an endpoint's configuration, parsed once.

Runs in the endpoint process, while the configuration is loaded: before the
endpoint daemonises, so nothing here opens a file or starts anything. Unknown keys
are refused with the nearest valid name; keys that a later version brings are
refused as such, never ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from globus_compute_apptainer.errors import ConfigError, SpecError
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.spec.policy import Policy

T = TypeVar("T")

DEFAULT_CACHE_DIR = "~/.cache/globus-compute-apptainer"
DEFAULT_BASE = "docker://python:{python}-slim"

_LATER = frozenset(
    "max_cache_size shared_caches registry refresh prestart build.on build.strategy"
    " run.idle_timeout run.stage_to run.isolation policy.pip_indexes".split()
)
# The options of `apptainer exec` that an admin may add. Others change what the worker
# relies on (environment, binds, working directory, process ids) or what the image is.
_OPTIONS = frozenset(
    "--apply-cgroups --blkio-weight --blkio-weight-device --cpu-shares --cpus"
    " --cpuset-cpus --cpuset-mems --memory --memory-reservation --memory-swap"
    " --oom-kill-disable --pids-limit --dns --hostname --ipc --net --network"
    " --network-args --uts --userns --no-home --no-privs --drop-caps --nv --nvccli"
    " --rocm --scratch --writable-tmpfs".split()
)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_SECONDS = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


@dataclass(frozen=True)
class BuildConfig:
    """How images are built on this endpoint.

    :param concurrency: builds at once in one endpoint process
    :param timeout: seconds that one build may take, pulling included
    :param tmp_dir: where builds work; chosen by free room if None
    :param env: environment variables passed to every build
    :param ca_bundle: PEM file for TLS inside builds; detected if None
    :param http_registries: registries (``host:port``) spoken to without TLS
    :param max_image_size: bytes; larger images are refused; None for no limit
    """

    concurrency: int = 2
    timeout: float = 1800.0
    tmp_dir: Path | None = None
    env: tuple[tuple[str, str], ...] = ()
    ca_bundle: Path | None = None
    http_registries: tuple[str, ...] = ()
    max_image_size: int | None = None


@dataclass(frozen=True)
class RunConfig:
    """How containers run on the workers.

    :param warm_per_worker: containers that one worker keeps running
    :param options: further options of ``apptainer exec``
    :param start_timeout: seconds that a container may take to start
    """

    warm_per_worker: int = 2
    options: tuple[str, ...] = ()
    start_timeout: float = 120.0


@dataclass(frozen=True)
class ContainersConfig:
    """The whole block.

    :param images: the admin's own images by name; policy does not bind them
    :param default_container: for tasks that attach none: a name of ``images``, or
        a spec, which policy binds (a template may pass a client's on)
    """

    cache_dir: Path
    default_base: str = DEFAULT_BASE
    apptainer: str | None = None
    build: BuildConfig = field(default_factory=BuildConfig)
    run: RunConfig = field(default_factory=RunConfig)
    policy: Policy = field(default_factory=Policy)
    images: Mapping[str, model.ContainerSpec] = field(default_factory=dict)
    default_container: model.ContainerSpec | str | None = None

    @classmethod
    def parse(
        cls, raw: object = None, environ: Mapping[str, str] | None = None
    ) -> ContainersConfig:
        """Read the block as YAML gives it.

        :param raw: the mapping under ``containers:``; None for all defaults
        :param environ: for ``$NAME`` in paths; the process environment if None
        :raises ConfigError: naming the key, what is wrong and the nearest valid key
        """
        env = os.environ if environ is None else environ
        top = _Block("", {} if raw is None else raw, env)
        policy = top.block("policy")
        config = cls(
            cache_dir=top.take("cache_dir", top.path) or top.expand(DEFAULT_CACHE_DIR),
            default_base=top.take("default_base", _base_template) or DEFAULT_BASE,
            apptainer=top.take("apptainer", top.program),
            build=_build(top.block("build"), policy.take("max_image_size", _size)),
            run=_run(top.block("run")),
            policy=_policy(policy),
            images=top.take("images", _images) or {},
        )
        default = top.take("default_container", lambda v: _container(v, config.images))
        top.finish()
        return dataclasses.replace(config, default_container=default)


class _Block:
    """A mapping whose keys are taken one by one; what is left is unknown."""

    def __init__(self, path: str, raw: object, environ: Mapping[str, str]) -> None:
        if not isinstance(raw, Mapping):
            raise _wrong(path or "containers", raw, "a mapping")
        self._path, self._raw, self._environ = path, dict(raw), environ
        self._known: list[str] = []
        self._children: list[_Block] = []

    def take(self, key: str, convert: Callable[[Any], T]) -> T | None:
        """The converted value; None where the key is absent or null."""
        self._known.append(key)
        value = self._raw.get(key)
        if value is None:
            return None
        try:
            return convert(value)
        except ConfigError as error:
            error.key = self._dotted(key) + error.key
            raise

    def block(self, key: str) -> _Block:
        self._known.append(key)
        raw = self._raw.get(key)
        child = _Block(self._dotted(key), {} if raw is None else raw, self._environ)
        self._children.append(child)
        return child

    def expand(self, text: str) -> Path:
        def value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in self._environ:
                raise ConfigError(
                    f"the environment variable {name} is not set",
                    hint="set it in user_environment.yaml, or write the path out",
                )
            return self._environ[name]

        expanded = re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, text)
        path = Path(expanded).expanduser()
        if not path.is_absolute():
            raise ConfigError(f"{text!r} is not an absolute path")
        return path

    def path(self, value: object) -> Path:
        return self.expand(_text(value))

    def paths(self, value: object) -> tuple[str, ...]:
        return tuple(str(self.expand(text)) for text in _texts(value))

    def program(self, value: object) -> str:
        """A name, for PATH to find, or a path."""
        text = _text(value)
        return str(self.expand(text)) if re.search(r"[/~$]", text) else text

    def finish(self) -> None:
        for child in self._children:
            child.finish()
        for key in self._raw:
            if key not in self._known:
                raise self._unknown(str(key))

    def _unknown(self, key: str) -> ConfigError:
        dotted = self._dotted(key)
        if dotted in _LATER:
            return ConfigError(
                f"{dotted!r} is not supported by this version",
                hint="remove it; docs/changelog says which version brings it",
                key=dotted,
            )
        near = difflib.get_close_matches(key, self._known, n=1)
        return ConfigError(
            f"unknown key {dotted!r} in the containers block",
            hint="valid keys here: " + ", ".join(sorted(self._known)),
            key=dotted,
            nearest=near[0] if near else "",
        )

    def _dotted(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key


def _build(block: _Block, max_image_size: int | None) -> BuildConfig:
    default = BuildConfig()
    return BuildConfig(
        concurrency=block.take("concurrency", _count) or default.concurrency,
        timeout=block.take("timeout", _seconds) or default.timeout,
        tmp_dir=block.take("tmp_dir", block.path),
        env=block.take("env", _environment) or (),
        ca_bundle=block.take("ca_bundle", block.path),
        http_registries=block.take("http_registries", _hosts) or (),
        max_image_size=max_image_size,
    )


def _run(block: _Block) -> RunConfig:
    default = RunConfig()
    return RunConfig(
        warm_per_worker=block.take("warm_per_worker", _count)
        or default.warm_per_worker,
        options=block.take("options", _options) or (),
        start_timeout=block.take("start_timeout", _seconds) or default.start_timeout,
    )


def _policy(block: _Block) -> Policy:
    default = Policy()
    flags = {
        key: default_value if (value := block.take(key, _flag)) is None else value
        for key, default_value in (
            ("allow_post", default.allow_post),
            ("allow_apt", default.allow_apt),
            ("allow_gpu", default.allow_gpu),
            ("require_digest", default.require_digest),
        )
    }
    bases = block.take("base_images", _texts)
    return Policy(
        base_images=default.base_images if bases is None else bases,
        binds=block.take("binds", block.paths) or (),
        local_images=block.take("local_images", block.paths) or (),
        **flags,
    )


def _container(
    value: object, images: Mapping[str, model.ContainerSpec]
) -> model.ContainerSpec | str:
    if not isinstance(value, str):
        return _spec(value, "")
    if value not in images:
        near = difflib.get_close_matches(value, images, n=1)
        raise ConfigError(
            f"no image named {value!r} under 'images'",
            nearest=near[0] if near else "",
        )
    return value


def _images(value: object) -> dict[str, model.ContainerSpec]:
    if not isinstance(value, Mapping):
        raise _wrong("", value, "a mapping of names to container specs")
    return {_text(name): _spec(raw, f".{name}") for name, raw in value.items()}


def _spec(value: object, key: str) -> model.ContainerSpec:
    try:
        return model.parse(_joined(value))
    except SpecError as error:
        where = f"{key}.{error.field}" if error.field else key
        raise ConfigError(
            f"not a valid container spec: {error.message}",
            hint=error.hint,
            key=where,
            nearest=error.nearest,
        ) from error


def _joined(value: object) -> object:
    """Texts of a client whose characters beyond U+FFFF arrived in halves: a template
    writes them as JSON does, and YAML does not join them."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_joined(item) for item in value]
    if isinstance(value, dict):
        return {_joined(name): _joined(item) for name, item in value.items()}
    return value


def _wrong(key: str, value: object, expected: str) -> ConfigError:
    got = type(value).__name__
    return ConfigError(f"expected {expected}, got {got} {value!r:.60}", key=key)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _wrong("", value, "a text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong("", value, "a list of texts")
    return tuple(_text(item) for item in value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong("", value, "true or false")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong("", value, "a whole number from 1 on")
    return value


def _seconds(value: object) -> float:
    match = _DURATION.fullmatch(str(value)) if not isinstance(value, bool) else None
    if match is None or float(match[1]) <= 0:
        raise _wrong("", value, "a duration such as 90s, 30m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def _size(value: object) -> int:
    match = _SIZE.fullmatch(str(value)) if not isinstance(value, bool) else None
    if match is None or float(match[1]) <= 0:
        raise _wrong("", value, "a size such as 500MB, 20GB or 2TiB")
    unit = 1024 if match[3] else 1000
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * unit**power)


def _environment(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping):
        raise _wrong("", value, "a mapping of names to texts")
    for name, text in value.items():
        if not _VARIABLE.fullmatch(_text(name)) or "\n" in _text(text):
            raise _wrong("", {name: text}, "a variable's name and a text of one line")
    return tuple(sorted(value.items()))


def _hosts(value: object) -> tuple[str, ...]:
    for text in _texts(value):
        if not _HOST.fullmatch(text):
            raise _wrong("", text, "host or host:port, without a scheme")
    return _texts(value)


def _options(value: object) -> tuple[str, ...]:
    options = _texts(value)
    for option in options:
        name = option.split("=", 1)[0]
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            raise ConfigError(
                f"the option {option!r} cannot be passed to apptainer exec here",
                hint="allowed, as --name or --name=value: "
                + ", ".join(sorted(_OPTIONS)),
                nearest=near[0] if near else "",
            )
    return options


def _base_template(value: object) -> str:
    template = _text(value)
    try:
        model.ContainerSpec().image_spec(default_base=template, python="3.11")
    except SpecError as error:
        raise ConfigError(
            f"{template!r} is not a base image: {error.message}",
            hint="for example docker://python:{python}-slim",
        ) from error
    return template
