"""What is in an image, for programs that look for licences and weaknesses.

Pure. A CycloneDX 1.6 document, written by ``cyclonedx-python-lib``: the image, its
base, and every package that the lock or the probe names. The same image gives the
same bytes: the serial number comes from its digest, the time from its manifest.

Not in it: operating-system packages of the base that this package did not install,
and licences; scanners find both in the image itself.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer import __version__

if TYPE_CHECKING:
    from cyclonedx.model import HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType

_NAMESPACE: Final = uuid.UUID("0b0a4d1c-3c0b-5d0e-8f65-6b3f5f1f1a52")
_OURS: Final = "globus-compute-apptainer"


@dataclass(frozen=True)
class Subject:
    """The image that the document is about; see the manifest's fields.

    :param packages: Python packages as ``name==version``
    :param os: the distribution's own name for itself
    """

    name: str
    digest: str
    created: str
    os: str
    packages: tuple[str, ...]
    lock: Mapping[str, Any]


def document(subject: Subject) -> str:
    """The document, as JSON text with a final newline."""
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415 - the endpoint extra

    text = JsonV1Dot6(_bom(subject)).output_as_string(indent=1)
    return text if text.endswith("\n") else f"{text}\n"


def _bom(subject: Subject) -> Bom:
    from cyclonedx.model.bom import Bom, BomMetaData  # noqa: PLC0415
    from cyclonedx.model.component import ComponentType  # noqa: PLC0415
    from cyclonedx.model.tool import ToolRepository  # noqa: PLC0415

    image = _component(
        ComponentType.CONTAINER,
        subject.name or "image",
        subject.digest,
        ref=f"image:{subject.digest}",  # which is no hash of the file
    )
    parts = [*_base(subject), *_packages(subject)]
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, subject.digest),
        metadata=BomMetaData(
            component=image,
            timestamp=_time(subject.created),
            tools=ToolRepository(components=_tools(subject.lock)),
        ),
        components=parts,
    )
    bom.register_dependency(image, parts)
    return bom


def _time(created: str) -> datetime:
    found = datetime.fromisoformat(created)
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)


def _tools(lock: Mapping[str, Any]) -> list[Component]:
    from cyclonedx.model.component import ComponentType  # noqa: PLC0415

    versions = {**lock.get("tools", {}), _OURS: __version__}
    return [
        _component(ComponentType.APPLICATION, name, str(version), ref=f"tool:{name}")
        for name, version in sorted(versions.items())
    ]


def _base(subject: Subject) -> Iterable[Component]:
    from cyclonedx.model.component import ComponentType  # noqa: PLC0415

    base = subject.lock.get("base", {})
    reference, digest = str(base.get("reference", "")), str(base.get("digest", ""))
    if reference:
        yield _component(
            ComponentType.CONTAINER,
            reference,
            digest,
            ref=f"base:{digest}",
            purl=_oci(reference, digest),
            hashes=[digest],
        )


def _packages(subject: Subject) -> list[Component]:
    """Every package once, those of the lock with what is known of their files."""
    lock = subject.lock
    debian = [*_listed(lock, "apt"), *_listed(lock, "post")]
    rows = [_of_debian(one, subject.os) for one in debian]
    rows += [_of_conda(one) for one in _listed(lock, "conda")]
    python = [_of_python(one) for one in _listed(lock, "pip")]
    known = {(_normal(str(row["name"])), row["version"]) for row in python}
    for pin in subject.packages:
        name, _, version = pin.partition("==")
        if (_normal(name), version) not in known:
            python.append(_of_python({"name": name, "version": version}))
    found = {row["ref"]: row for row in (*rows, *python)}
    return [_library(**found[ref]) for ref in sorted(found)]


def _listed(lock: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    return list((lock.get(kind) or {}).get("packages", ()))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _of_python(one: Mapping[str, Any]) -> dict[str, Any]:
    name, version = str(one["name"]), str(one.get("version") or "")
    purl = _purl("pypi", None, _normal(name), version)
    hashes = list(one.get("hashes", ()))
    return {
        "name": name,
        "version": version,
        "purl": purl,
        "ref": str(purl),
        # Which of a release's files was installed is known only where it has one.
        "hashes": hashes if len(hashes) == 1 else (),
        "any_of": hashes if len(hashes) > 1 else (),
        "url": str(one.get("url") or ""),
    }


def _of_debian(one: Mapping[str, Any], system: str) -> dict[str, Any]:
    name, version = str(one["name"]), str(one["version"])
    family = "ubuntu" if system.lower().startswith("ubuntu") else "debian"
    about = {"arch": str(one["arch"])} if one.get("arch") else None
    purl = _purl("deb", family, name, version, about)
    return {"name": name, "version": version, "purl": purl, "ref": str(purl)}


def _of_conda(one: Mapping[str, Any]) -> dict[str, Any]:
    name, version = str(one["name"]), str(one["version"])
    about = {key: str(one[key]) for key in ("build", "channel", "subdir") if key in one}
    purl = _purl("conda", None, name, version, about)
    digest = one.get("sha256")
    return {
        "name": name,
        "version": version,
        "purl": purl,
        "ref": str(purl),
        "hashes": [f"sha256:{digest}"] if digest else (),
        "url": str(one.get("url") or ""),
    }


def _oci(reference: str, digest: str) -> Any:
    agent, colon, rest = reference.partition("://")
    if not colon or agent not in ("docker", "oras"):
        return None
    name = rest.partition("@")[0]
    head, slash, last = name.rpartition("/")
    short, _, tag = last.partition(":")
    about = {"repository_url": f"{head}{slash}{short}"}
    return _purl("oci", None, short, digest, {**about, **({"tag": tag} if tag else {})})


def _purl(
    kind: str,
    namespace: str | None,
    name: str,
    version: str,
    about: Mapping[str, str] | None = None,
) -> Any:
    from packageurl import PackageURL  # noqa: PLC0415 - comes with cyclonedx

    return PackageURL(kind, namespace, name, version or None, dict(about or {}))


def _library(*, url: str = "", any_of: Iterable[str] = (), **fields: Any) -> Component:
    """
    :param any_of: hashes of the files of which one was installed
    """
    from cyclonedx.model import (  # noqa: PLC0415
        ExternalReference,
        ExternalReferenceType,
        Property,
        XsUri,
    )
    from cyclonedx.model.component import ComponentType  # noqa: PLC0415

    found = _component(ComponentType.LIBRARY, **fields)
    for one in any_of:
        found.properties.add(Property(name=f"{_OURS}:file", value=one))
    if url:
        kind = ExternalReferenceType.DISTRIBUTION
        found.external_references.add(ExternalReference(type=kind, url=XsUri(url)))
    return found


def _component(
    kind: ComponentType,
    name: str,
    version: str,
    *,
    ref: str,
    purl: Any = None,
    hashes: Iterable[str] = (),
) -> Component:
    from cyclonedx.model.component import Component  # noqa: PLC0415

    return Component(
        type=kind,
        name=name,
        version=version or None,
        bom_ref=ref,
        purl=purl,
        hashes=[found for text in hashes if (found := _hash(text))],
    )


def _hash(text: str) -> HashType | None:
    from cyclonedx.model import HashAlgorithm, HashType  # noqa: PLC0415

    kinds = {
        "sha256": HashAlgorithm.SHA_256,
        "sha384": HashAlgorithm.SHA_384,
        "sha512": HashAlgorithm.SHA_512,
    }
    kind, _, digits = text.partition(":")
    return HashType(alg=kinds[kind], content=digits) if kind in kinds else None
