"""What an endpoint's administrator allows. Pure; runs in the endpoint process.

Policy sees normal forms only (see :mod:`.model`), so a spec cannot say the same thing
in a way that a rule does not know. It decides by what is written: symbolic links
inside an allowed directory, and what a tag means today, are not its business.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from globus_compute_apptainer.errors import PolicyError
from globus_compute_apptainer.spec import base
from globus_compute_apptainer.spec.binds import inside
from globus_compute_apptainer.spec.model import ImageSpec, RunSpec
from globus_compute_apptainer.spec.refusal import show

#: Files that run as code of their own at the end of a build.
SCRIPTS = ("postBuild", "install.R")

# Library references name a digest by a tag of this form.
_LIBRARY_DIGEST = re.compile(r":sha256\.[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Policy:
    """The rules of one endpoint; the defaults suit an endpoint that is shared.

    :param base_images: globs on ``agent://reference`` for images from registries
        (``docker://python:*``, ``docker://ghcr.io/org/*``). ``*`` also matches ``/``.
        Missing parts of a Docker reference mean Docker Hub, and a digest is matched
        by ``docker://python@*``, since a tag beside it is dropped
    :param allow_post: whether shell lines may run at the end of a build
    :param allow_apt: whether Debian packages may be installed
    :param conda_channels: globs on the conda channels that specs may name: names
        (``conda-forge``, ``bioconda``) or URLs. The endpoint's own are always allowed
    :param payload_urls: globs on the URLs of payloads in normal form, without what
        stands after ``#``: ``https://…`` for archives, ``git+https://…`` for git
    :param binds: directories of the host that tasks may bind, with all below them
    :param allow_gpu: whether tasks may ask for a GPU's driver libraries
    :param require_digest: whether images from registries need ``@sha256:…``
    :param local_images: directories of the host whose ``.sif`` files and archives may
        be bases, whatever ``base_images`` says
    """

    base_images: tuple[str, ...] = ("*",)
    allow_post: bool = False
    allow_apt: bool = True
    binds: tuple[str, ...] = ()
    allow_gpu: bool = True
    require_digest: bool = False
    local_images: tuple[str, ...] = ()
    conda_channels: tuple[str, ...] = ("*",)
    payload_urls: tuple[str, ...] = ("https://*", "git+https://*")


def check(
    image: ImageSpec, run: RunSpec, policy: Policy, *, default_base: bool = False
) -> None:
    """Return if ``policy`` allows the image and the way it is to be run.

    :param default_base: the base is the endpoint's own choice, and so is allowed
    :raises PolicyError: naming the first field that it does not allow; its hint says
        what the administrator does allow
    """
    if not default_base:
        _check_base(image, policy)
        _check_digest(image, policy)
    _check_steps(image, policy)
    _check_channels(image, policy)
    if image.payload:
        check_payload(image.payload, policy)
    _check_run(run, policy)


def _check_base(image: ImageSpec, policy: Policy) -> None:
    if image.agent in base.LOCAL_AGENTS:
        path = image.base_image.partition(":")[0]
        if not inside(path, policy.local_images):
            raise _denied(
                "base_image", path, "this file", _list("files", policy.local_images)
            )
        return
    full = base.qualified(image.agent, image.base_image)
    globs = map(base.qualified_pattern, policy.base_images)
    if not any(fnmatch.fnmatchcase(full, glob) for glob in globs):
        shown = f"{image.agent}://{image.base_image}"
        hint = _list("base images", policy.base_images)
        raise _denied("base_image", shown, "this image", hint)


def _check_digest(image: ImageSpec, policy: Policy) -> None:
    if not policy.require_digest or image.agent in base.LOCAL_AGENTS:
        return
    if "@" in image.base_image:
        return
    if image.agent == "library" and _LIBRARY_DIGEST.search(image.base_image):
        return
    hint = "name the image by digest, as in python@sha256:…"
    raise _denied("base_image", image.base_image, "an image without a digest", hint)


def _check_steps(image: ImageSpec, policy: Policy) -> None:
    if image.apt and not policy.allow_apt:
        hint = "use pip, or a base_image that has the packages"
        raise _denied("apt", image.apt[0], "Debian packages", hint)
    if image.post and not policy.allow_post:
        hint = "use pip and apt, or a base_image made with these lines"
        raise _denied("post", image.post[0], "shell lines", hint)
    scripts = [name for name, _ in image.files if name in SCRIPTS]
    if scripts and not policy.allow_post:
        hint = "use pip, apt and conda, or a base_image made with this script"
        raise _denied(f"files.{scripts[0]}", scripts[0], "scripts of a build", hint)


def check_payload(url: str, policy: Policy, field: str = "payload_url") -> None:
    """:raises PolicyError: no payload may come from this URL, in normal form"""
    place = url.partition("#")[0]
    if not any(fnmatch.fnmatchcase(place, glob) for glob in policy.payload_urls):
        hint = _list("payloads", policy.payload_urls)
        raise _denied(field, place, "payloads from this URL", hint)


def _check_channels(image: ImageSpec, policy: Policy) -> None:
    for channel in image.conda.named_channels if image.conda else ():
        if not any(
            fnmatch.fnmatchcase(channel, glob) for glob in policy.conda_channels
        ):
            hint = _list("conda channels", policy.conda_channels)
            raise _denied("conda", channel, "this channel", hint)


def _check_run(run: RunSpec, policy: Policy) -> None:
    if run.gpu and not policy.allow_gpu:
        raise _denied("gpu", run.gpu, "GPUs", "leave gpu out")
    for number, bind in enumerate(run.binds):
        if not inside(bind.partition(":")[0], policy.binds):
            hint = _list("binds", policy.binds)
            raise _denied(f"binds[{number}]", bind, "this bind", hint)


def _denied(field: str, value: str, what: str, hint: str) -> PolicyError:
    message = f"{field}: this endpoint does not allow {what}"
    return PolicyError(message, hint=hint, field=field, value=show(value))


def _list(what: str, allowed: tuple[str, ...]) -> str:
    if not allowed:
        return f"this endpoint allows no {what} of your own choice"
    return f"allowed {what}: {', '.join(allowed)}"
