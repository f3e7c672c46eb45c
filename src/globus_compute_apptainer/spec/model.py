"""A container spec: what a client asks for, and the identity of what it asks for.

Pure; runs in the endpoint process and in ``gc-apptainer``. :func:`parse` is the only
way in: whatever it returns is valid and in normal form, and it raises nothing but
:class:`~..errors.SpecError`.

Identity is declared here and nowhere else. An image is named by the SHA-256 of
:meth:`ImageSpec.canonical`; two specs that mean the same image have the same bytes
there, and names, descriptions, labels and everything of the run never enter it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from globus_compute_apptainer.spec import base, binds, fields, sources
from globus_compute_apptainer.spec.apt import package
from globus_compute_apptainer.spec.conda import (
    Conda,
    Environment,
    environment,
    merged,
    wanted_python,
)
from globus_compute_apptainer.spec.items import (
    checked,
    package_lines,
    requirement_lines,
)
from globus_compute_apptainer.spec.names import Given, resolve
from globus_compute_apptainer.spec.plain import MAX_SPEC_BYTES, plain
from globus_compute_apptainer.spec.refusal import Json, Refusal, blame, text
from globus_compute_apptainer.spec.requirements import requirement

__all__ = ["MAX_SPEC_BYTES", "ContainerSpec", "ImageSpec", "RunSpec", "parse"]

#: Version of the canonical form. A field that is new enters it only where it is set,
#: so that digests stay; a change of meaning needs a new version.
FORMAT = 1

T = TypeVar("T")


@dataclass(frozen=True)
class ImageSpec:
    """An image that can be built: nothing is left to choose.

    Not validated here; :meth:`ContainerSpec.image_spec` makes valid ones.

    :param base_image: reference in the agent's own grammar, without a scheme
    :param agent: one of :data:`.base.AGENTS`
    :param python: minor version (``3.11``) that the image must have; None: any
    :param pip: PEP 508 requirements in normal form, sorted
    :param apt: Debian packages, sorted
    :param post: shell lines, in order
    :param conda: None where no conda packages are wanted
    :param payload: URL of an archive, or ``git+URL#ref``, in normal form
    :param files: ``(name, text)`` of files that are put at ``/payload``, sorted
    :param build_env: ``(name, value)`` of the build, sorted by name
    """

    base_image: str
    agent: str
    python: str | None = None
    pip: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    conda: Conda | None = None
    payload: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    build_env: tuple[tuple[str, str], ...] = ()

    def canonical(self) -> bytes:
        """The one encoding of this image: ASCII JSON, keys sorted, unset ones left out.

        The same bytes for ever, on every platform and Python (golden-tested).
        """
        given = {
            "format": FORMAT,
            "agent": self.agent,
            "base_image": self.base_image,
            "python": self.python,
            "pip": self.pip,
            "apt": self.apt,
            "post": self.post,
            "conda": self.conda and self.conda.canonical(),
            "payload": self.payload,
            "files": self.files,
            "build_env": self.build_env,
        }
        kept = {name: value for name, value in given.items() if value}
        return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode("ascii")

    @cached_property
    def digest(self) -> str:
        """``sha256:`` and 64 hexadecimal digits of :meth:`canonical`."""
        return "sha256:" + hashlib.sha256(self.canonical()).hexdigest()


@dataclass(frozen=True)
class RunSpec:
    """How the image is run: together with it, what keys a warm container.

    :param binds: ``source:target:mode``, outer targets before inner ones
    :param env: ``(name, value)`` sorted by name
    :param preload: modules that a container imports before it runs tasks
    """

    gpu: fields.Gpu | None = None
    binds: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    preload: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContainerSpec:
    """What the user asked for, valid and in normal form.

    :param base_image: None where the endpoint's default base is meant; so ``agent``
    :param refresh: seconds after which the image is resolved and made anew; None:
        never. Not part of the image's identity
    :param labels: ``(name, text)`` sorted by name
    :param notes: sentences for the log, on fields that were accepted and ignored
    """

    base_image: str | None = None
    agent: str | None = None
    python: str | None = None
    pip: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    conda: Conda | None = None
    payload: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    build_env: tuple[tuple[str, str], ...] = ()
    refresh: float | None = None
    run_spec: RunSpec = RunSpec()
    name: str = ""
    description: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def image_spec(self, *, default_base: str, python: str) -> ImageSpec:
        """The image to build for this spec at one endpoint.

        :param default_base: base for specs that name none, as in ``base_image``;
            ``{python}`` in it stands for a minor version of Python
        :param python: the minor version (``3.11``) for specs that name none. The
            image must have it only where the default base was chosen by it
        :raises SpecError: ``default_base`` or ``python`` are not valid
        """
        agent, ref, wanted = self.agent, self.base_image, self.python
        if agent is None or ref is None:
            written = default_base
            if "{python}" in default_base:
                wanted = wanted or fields.python("python", python)
                written = default_base.replace("{python}", wanted)
            with blame("default_base", written):
                agent, ref = base.reference(written)
        return ImageSpec(
            ref,
            agent,
            wanted,
            self.pip,
            self.apt,
            self.post,
            self.conda,
            self.payload,
            self.files,
            self.build_env,
        )


def parse(raw: object) -> ContainerSpec:
    """Validate and normalise what a client sent.

    Takes any object at all, and runs none of its code.

    :param raw: the value of ``resource_specification["container"]``, an object
    :raises SpecError: codes ``spec-invalid``, ``spec-empty``, ``spec-too-large``
        and ``spec-unsupported``; names the field, the value and the reason
    """
    given, notes = resolve(plain(raw))
    agent, ref = _base(given)
    payload = _field(given, "payload_url", sources.payload_url, None)
    brought = _files(given, payload=payload is not None)
    asked = brought.asked
    conda = _field(given, "conda", environment, Environment())
    conda = merged(conda, Environment(asked.conda, asked.pip))
    none: tuple[str, ...] = ()
    pip = _field(given, "pip", _pip, none)
    apt = _field(given, "apt", _apt, none)
    spec = ContainerSpec(
        base_image=ref,
        agent=agent,
        python=_python(given, conda, asked.python),
        pip=tuple(sorted({*pip, *conda.pip})),
        apt=tuple(sorted({*apt, *asked.apt})),
        post=_field(given, "post", fields.post, ()),
        conda=conda.conda,
        payload=payload,
        files=brought.kept,
        build_env=_field(given, "build_env", sources.build_env, ()),
        refresh=_field(given, "refresh", sources.refresh, None),
        run_spec=RunSpec(
            gpu=_field(given, "gpu", fields.gpu, None),
            binds=_field(given, "binds", binds.binds, ()),
            env=_field(given, "env", fields.env, ()),
            preload=_field(given, "preload", fields.preload, ()),
        ),
        name=_field(given, "name", fields.note, ""),
        description=_field(given, "description", _description, ""),
        labels=_field(given, "labels", fields.labels, ()),
        notes=(*notes, *asked.notes),
    )
    _check_not_empty(spec)
    return spec


def _field(
    given: dict[str, Given], name: str, check: Callable[[str, Json], T], default: T
) -> T:
    return check(*given[name]) if name in given else default


def _base(given: dict[str, Given]) -> tuple[str | None, str | None]:
    stated = None
    if "base_image_type" in given:
        label, value = given["base_image_type"]
        with blame(label, value):
            stated = base.agent(text(value))
            if "base_image" not in given:
                raise Refusal("says nothing without base_image")
    if "base_image" not in given:
        return None, None
    label, value = given["base_image"]
    with blame(label, value):
        return base.reference(text(value), stated)


def _files(given: dict[str, Given], *, payload: bool) -> sources.Brought:
    if "files" not in given:
        return sources.Brought()
    return sources.files(*given["files"], payload=payload)


def _python(
    given: dict[str, Given], conda: Environment, of_files: str | None
) -> str | None:
    """The one version that all who name one agree on."""
    wanted = _field(given, "python", fields.python, None)
    for name, found in (("conda", conda.python), ("files", of_files)):
        if found:
            label = given[name if name in given else "files"].label
            wanted = wanted_python(wanted, Environment(python=found), label)
    return wanted


def _pip(field: str, value: Json) -> tuple[str, ...]:
    return checked(field, value, requirement_lines, requirement)


def _apt(field: str, value: Json) -> tuple[str, ...]:
    return checked(field, value, package_lines, package)


def _description(field: str, value: Json) -> str:
    return fields.note(field, value, lines=True)


def _check_not_empty(spec: ContainerSpec) -> None:
    image = (spec.base_image, spec.python, spec.pip, spec.apt, spec.post, spec.conda)
    brought = (spec.payload, spec.files, spec.build_env, spec.refresh)
    if any(image) or any(brought) or spec.run_spec != RunSpec():
        return
    hint = 'say what the image needs, as in {"pip": ["pandas"]}'
    raise Refusal("asks for nothing", hint, code="spec-empty").at("", "")
