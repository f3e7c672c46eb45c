"""Which Python a directory is made for: runtime.txt, and requires-python. Pure."""

from __future__ import annotations

import re

from globus_compute_apptainer.spec import foreign
from globus_compute_apptainer.spec.refusal import Refusal

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_NUMBERS = re.compile(r"\d+(\.\d+)*")


def runtime(text: str) -> tuple[str | None, str]:
    """The minor version of Python that a runtime.txt names, and a note.

    :raises Refusal: it is not a runtime.txt, or is one of another language
    """
    parts = text.strip().split("-")
    if len(parts) not in (2, 4, 5) or not all(parts):
        raise Refusal("is not a runtime", "as in python-3.11")
    if len(parts) > 2 and not _DATE.fullmatch("-".join(parts[-3:])):
        raise Refusal("has a date that is none", "as in r-4.4-2024-06-01")
    if parts[0] == "r":
        reason, hint = foreign.R_RUNTIME
        raise Refusal(f"asks for R, which is not supported, because {reason}", hint)
    if parts[0] != "python":
        raise Refusal("names a language other than Python", "as in python-3.11")
    if len(parts) == 4 or parts[1] == "3":
        return None, "runtime.txt leaves the minor version of Python open"
    return _minor(parts[1])


def _minor(version: str) -> tuple[str, str]:
    if not _NUMBERS.fullmatch(version):
        raise Refusal("has a version that Python cannot have", "as in python-3.11")
    minor = ".".join(version.split(".")[:2])
    note = f"of Python {version}, any patch version of {minor} is taken"
    return minor, "" if minor == version else note


def allows(wanted: str, minor: str) -> bool:
    """Whether some patch version of ``minor`` is in the specifier."""
    from packaging.specifiers import (  # noqa: PLC0415 - clients may lack it
        InvalidSpecifier,
        SpecifierSet,
    )

    try:
        specifiers = SpecifierSet(wanted)
    except InvalidSpecifier:
        raise Refusal("has a requires-python that PEP 440 does not know") from None
    return any(specifiers.contains(f"{minor}{patch}") for patch in ("", ".0", ".99"))
