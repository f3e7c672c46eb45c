"""Debian packages, as the field ``apt`` names them. Pure."""

from __future__ import annotations

import re

from globus_compute_apptainer.spec.refusal import Refusal

# Debian Policy 5.6.1 (names), 5.6.12 (versions), 5.6.8 (architectures).
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9-]*")
_VERSION = re.compile(r"(?:[0-9]+:)?[0-9A-Za-z][0-9A-Za-z.+~-]*")
_LONGEST = 200


def package(entry: str) -> str:
    """``name[:architecture][=version]``, as given.

    What is accepted is never an option of ``apt-get``, nor one of its operators: a
    ``-`` at the end would remove the package.

    :raises Refusal: anything else
    """
    if entry.startswith("-"):
        raise Refusal("is an option, not a Debian package", "only names are accepted")
    if len(entry) > _LONGEST:
        raise Refusal("is too long for a Debian package name")
    named, equals, version = entry.partition("=")
    name, colon, architecture = named.partition(":")
    if not _NAME.fullmatch(name):
        raise Refusal("is not a Debian package name", _name_hint(name))
    if colon and not _ARCHITECTURE.fullmatch(architecture):
        raise Refusal("has an architecture that Debian cannot have", "as in name:arm64")
    if equals and not _VERSION.fullmatch(version):
        raise Refusal("has a version that Debian cannot have", "write name=1.2.3-4")
    if entry.endswith("-"):
        raise Refusal("ends in '-', which apt-get reads as a removal")
    return entry


def _name_hint(name: str) -> str:
    if _NAME.fullmatch(name.lower()):
        return "Debian names are lower case"
    if len(name.split()) > 1:
        return "one package per entry"
    if any(sign in name for sign in "<>"):
        return "only name=version pins a version"
    return "lower case letters, digits and + - . only, at least two characters"
