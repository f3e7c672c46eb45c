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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from globus_compute_apptainer.config.block import Block
from globus_compute_apptainer.config.values import (
    channels,
    count,
    environment,
    flag,
    hosts,
    isolation,
    journal,
    mirror,
    mirrors,
    modules,
    node_folder,
    options,
    seconds,
    size,
    strategy,
    text,
    texts,
    wrong,
)
from globus_compute_apptainer.errors import ConfigError, SpecError
from globus_compute_apptainer.spec import model
from globus_compute_apptainer.spec.policy import Policy

DEFAULT_CACHE_DIR = "~/.cache/globus-compute-apptainer"
DEFAULT_BASE = "docker://python:{python}-slim"


@dataclass(frozen=True)
class BuildConfig:
    """How images are built on this endpoint.

    :param concurrency: builds at once in one endpoint process
    :param cache_concurrency: builds at once of all that share the cache; None: any
        number
    :param timeout: seconds that one build may take, pulling included
    :param tmp_dir: where builds work; chosen by free room if None
    :param env: environment variables passed to every build
    :param ca_bundle: PEM file for TLS inside builds; detected if None
    :param http_registries: registries (``host:port``) spoken to without TLS
    :param strategy: ``layered``, ``flat``, or ``auto``: layered where that is right
    :param package_cache: where wheels and conda packages are kept, best on a local
        disk; in ``cache_dir`` if None
    :param conda_channels: for specs that name none, first one first; here also
        directories of this site (``file://…``)
    :param conda_mirrors: ``(channel, URL)``: where a channel is had from here
    :param debian_mirror: where ``debootstrap`` bases come from; None: as this
        machine's own apt has it, if that is Debian's
    :param max_payload_size: bytes of a payload as it is fetched; unpacked it may
        have :data:`~.build.payload.archive.EXPANSION` times as many
    :param max_image_size: bytes; larger images are refused; None for no limit
    """

    concurrency: int = 2
    timeout: float = 1800.0
    tmp_dir: Path | None = None
    env: tuple[tuple[str, str], ...] = ()
    ca_bundle: Path | None = None
    http_registries: tuple[str, ...] = ()
    strategy: str = "auto"
    package_cache: Path | None = None
    conda_channels: tuple[str, ...] = ("conda-forge",)
    max_payload_size: int = 2_000_000_000
    conda_mirrors: tuple[tuple[str, str], ...] = ()
    debian_mirror: str | None = None
    max_image_size: int | None = None
    cache_concurrency: int | None = None


@dataclass(frozen=True)
class RunConfig:
    """How containers run on the workers.

    :param warm_per_worker: images for which one worker keeps a process
    :param warm_per_node: containers that one node keeps for its workers
    :param warm_memory: bytes that the containers of one node may take together; None:
        half of its memory
    :param idle_timeout: seconds without a task after which a container ends
    :param isolation: ``worker``: one process runs many tasks of one worker; ``task``:
        every task has its own
    :param preload: modules that every container imports before it runs tasks
    :param stage_to: folder on each node that images are copied to; None: they are
        used from the cache
    :param stage_size: bytes that the copies on one node may take
    :param options: further options of ``apptainer exec``
    :param start_timeout: seconds that a container may take to start
    """

    warm_per_worker: int = 4
    warm_per_node: int = 16
    warm_memory: int | None = None
    idle_timeout: float = 300.0
    isolation: str = "worker"
    preload: tuple[str, ...] = ()
    stage_to: str | None = None
    stage_size: int = 20_000_000_000
    options: tuple[str, ...] = ()
    start_timeout: float = 120.0


@dataclass(frozen=True)
class ContainersConfig:
    """The whole block.

    :param max_cache_size: bytes in ``cache_dir``; None: no limit
    :param shared_caches: caches of the site, looked into first and never written
    :param refresh: seconds after which an image is made anew, where its spec does not
        say; None: never
    :param images: the admin's own images by name; policy does not bind them
    :param default_container: for tasks that attach none: a name of ``images``, or
        a spec, which policy binds (a template may pass a client's on)
    :param journal: whether tasks that wait for an image are kept on disk: ``on``,
        ``off``, or ``auto``: unless the endpoint is a high-assurance one
    :param remove_dead_pid_file: whether a start removes upstream's pid file where the
        process that wrote it is proven dead
    """

    cache_dir: Path
    default_base: str = DEFAULT_BASE
    refresh: float | None = None
    apptainer: str | None = None
    build: BuildConfig = field(default_factory=BuildConfig)
    run: RunConfig = field(default_factory=RunConfig)
    policy: Policy = field(default_factory=Policy)
    images: Mapping[str, model.ContainerSpec] = field(default_factory=dict)
    default_container: model.ContainerSpec | str | None = None
    journal: str = "auto"
    remove_dead_pid_file: bool = True
    max_cache_size: int | None = None
    shared_caches: tuple[Path, ...] = ()

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
        top = Block("", {} if raw is None else raw, env)
        policy = top.block("policy")
        config = cls(
            cache_dir=top.take("cache_dir", top.overlay_path)
            or top.expand(DEFAULT_CACHE_DIR),
            default_base=top.take("default_base", _base_template) or DEFAULT_BASE,
            refresh=top.take("refresh", seconds),
            apptainer=top.take("apptainer", top.program),
            build=_build(top.block("build"), policy.take("max_image_size", size)),
            run=_run(top.block("run")),
            policy=_policy(policy),
            images=top.take("images", _images) or {},
            journal=top.take("journal", journal) or cls.journal,
            remove_dead_pid_file=top.take("remove_dead_pid_file", flag) is not False,
            max_cache_size=top.take("max_cache_size", size),
            shared_caches=top.take("shared_caches", top.overlay_paths) or (),
        )
        default = top.take("default_container", lambda v: _container(v, config.images))
        top.finish()
        return dataclasses.replace(config, default_container=default)


def _build(block: Block, max_image_size: int | None) -> BuildConfig:
    default = BuildConfig()
    return BuildConfig(
        concurrency=block.take("concurrency", count) or default.concurrency,
        cache_concurrency=block.take("cache_concurrency", count),
        timeout=block.take("timeout", seconds) or default.timeout,
        tmp_dir=block.take("tmp_dir", block.path),
        env=block.take("env", environment) or (),
        ca_bundle=block.take("ca_bundle", block.path),
        http_registries=block.take("http_registries", hosts) or (),
        strategy=block.take("strategy", strategy) or default.strategy,
        package_cache=block.take("package_cache", block.path),
        conda_channels=block.take("conda_channels", channels) or default.conda_channels,
        max_payload_size=block.take("max_payload_size", size)
        or default.max_payload_size,
        conda_mirrors=block.take("conda_mirrors", mirrors) or (),
        debian_mirror=block.take("debian_mirror", mirror),
        max_image_size=max_image_size,
    )


def _run(block: Block) -> RunConfig:
    default = RunConfig()
    return RunConfig(
        warm_per_worker=block.take("warm_per_worker", count) or default.warm_per_worker,
        warm_per_node=block.take("warm_per_node", count) or default.warm_per_node,
        warm_memory=block.take("warm_memory", size),
        idle_timeout=block.take("idle_timeout", seconds) or default.idle_timeout,
        isolation=block.take("isolation", isolation) or default.isolation,
        preload=block.take("preload", modules) or (),
        stage_to=block.take("stage_to", node_folder),
        stage_size=block.take("stage_size", size) or default.stage_size,
        options=block.take("options", options) or (),
        start_timeout=block.take("start_timeout", seconds) or default.start_timeout,
    )


def _policy(block: Block) -> Policy:
    default = Policy()
    flags = {
        key: default_value if (value := block.take(key, flag)) is None else value
        for key, default_value in (
            ("allow_post", default.allow_post),
            ("allow_apt", default.allow_apt),
            ("allow_gpu", default.allow_gpu),
            ("require_digest", default.require_digest),
        )
    }
    bases = block.take("base_images", texts)
    conda = block.take("conda_channels", texts)
    payloads = block.take("payload_urls", texts)
    return Policy(
        base_images=default.base_images if bases is None else bases,
        conda_channels=default.conda_channels if conda is None else conda,
        payload_urls=default.payload_urls if payloads is None else payloads,
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
        raise wrong("", value, "a mapping of names to container specs")
    return {text(name): _spec(raw, f".{name}") for name, raw in value.items()}


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


def _base_template(value: object) -> str:
    template = text(value)
    try:
        model.ContainerSpec().image_spec(default_base=template, python="3.11")
    except SpecError as error:
        raise ConfigError(
            f"{template!r} is not a base image: {error.message}",
            hint="for example docker://python:{python}-slim",
        ) from error
    return template
