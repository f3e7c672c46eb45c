"""Can packages and base images be reached? Five seconds each, nothing downloaded."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from globus_compute_apptainer.build import indexes
from globus_compute_apptainer.build.site import SiteAccess
from globus_compute_apptainer.cli.findings import Finding, ok, warn
from globus_compute_apptainer.cli.host import Host, Reply
from globus_compute_apptainer.cli.inputs import Settings

DOCKER_HUB = "registry-1.docker.io"
_INDEX_FIX = (
    "configure pip or uv for an index that this machine reaches (builds take over what"
    " they find), and build.ca_bundle if its certificate is the site's own"
)
_REGISTRY_FIX = (
    "set default_base to an image in a registry that this machine reaches, or"
    " build.http_registries for one without TLS"
)


def package_index(host: Host, settings: Settings) -> Finding:
    """The index that builds would install from."""
    site = SiteAccess.from_host(host.environ, settings.config.build, host.prefix)
    uv = indexes.from_uv(host.environ)
    if uv is None and (file := indexes.uv_file(host.environ)) is not None:
        return ok(f"as {file} says (not tried)")
    source = uv or indexes.from_pip(host.environ, host.prefix)
    if source.no_index:
        return ok(f"none; packages come from {' '.join(source.links) or 'nowhere'}")
    url = source.default or indexes.public()
    if not url:
        return ok("the public one (not tried: there is no pip here to ask for it)")
    shown = site.redact(url)
    if not url.startswith(("http:", "https:")):
        return _folder(host, url)
    reply = host.fetch(f"{url.rstrip('/')}/pip/", site.ca_bundle)
    if 200 <= reply.status < 400:
        return ok(f"{shown} answers")
    return warn(f"{shown}: {site.redact(_said(reply))}", _INDEX_FIX)


def _folder(host: Host, url: str) -> Finding:
    path = Path(unquote(urlsplit(url).path))
    if host.existing(path) == path:
        return ok(f"the folder {path}")
    return warn(f"the folder {path} is not there", _INDEX_FIX)


def base_registry(host: Host, settings: Settings) -> Finding:
    """The registry that the default base comes from."""
    config = settings.config
    version = ".".join(platform.python_version_tuple()[:2])
    base = config.default_base.replace("{python}", version)
    registry = registry_of(base)
    if registry is None:
        return ok(f"{base} comes from no registry that could be tried")
    bundle = SiteAccess.from_host(host.environ, config.build, host.prefix).ca_bundle
    reply = ask_registry(host, registry, config.build.http_registries, bundle)
    # Without credentials, most registries answer 401, and are there.
    if reply.status in (200, 401):
        return ok(f"{registry} answers (for {base})")
    return warn(f"{registry} (for {base}): {_said(reply)}", _REGISTRY_FIX)


def ask_registry(
    host: Host, registry: str, without_tls: Sequence[str], bundle: Path | None = None
) -> Reply:
    """What a registry says to who asks whether it is one."""
    scheme = "http" if registry in without_tls else "https"
    return host.fetch(f"{scheme}://{registry}/v2/", bundle)


def registry_of(base: str) -> str | None:
    """The registry in ``docker://…`` or ``oras://…``; None for other bases."""
    agent, found, reference = base.partition("://")
    if not found or agent not in ("docker", "oras"):
        return None
    first, more, _ = reference.partition("/")
    if more and (first == "localhost" or "." in first or ":" in first):
        return first
    return DOCKER_HUB


def _said(reply: Reply) -> str:
    if reply.status == 0:
        return f"cannot be reached: {reply.reason}"
    return f"answers {reply.status} {reply.reason}".rstrip()
