"""The names of a spec's fields: known, aliased, ignored, misspelt. Pure."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from globus_compute_apptainer.spec.refusal import Json, Refusal, show

#: Every field that counts, in the order of the reference documentation.
FIELDS = (
    "base_image",
    "base_image_type",
    "python",
    "pip",
    "conda",
    "apt",
    "payload_url",
    "files",
    "post",
    "env",
    "build_env",
    "gpu",
    "binds",
    "preload",
    "refresh",
    "name",
    "description",
    "labels",
)

#: Names that the two earlier systems use (custom-image-builder, Container Service).
ALIASES = {
    "pip_packages": "pip",
    "apt_packages": "apt",
    "conda_packages": "conda",
    "image_file_name": "name",
    "python_version": "python",
}

#: Fields of the earlier systems that mean nothing here, and why.
IGNORED = {
    "container_id": "images are found by what they hold, not by an id",
    "container_type": "images are always Apptainer images",
}

_SYNONYMS = {
    "image": "base_image",
    "from": "base_image",
    "bootstrap": "base_image_type",
    "packages": "pip",
    "requirements": "pip",
    "payload": "payload_url",
    "repository": "payload_url",
    "repo": "payload_url",
    "dependencies": "pip",
    "environment": "env",
    "mounts": "binds",
    "volumes": "binds",
    "run": "post",
    "gpus": "gpu",
}
_LONGEST_NAME = 40


class Given(NamedTuple):
    """A field that the user gave.

    :param label: the name the user wrote, perhaps an alias
    :param value: never null
    """

    label: str
    value: Json


def resolve(tree: dict[str, Json]) -> tuple[dict[str, Given], tuple[str, ...]]:
    """The fields given, under their own names, and notes on what was ignored.

    A null is an absent field (clients of the earlier systems send nulls for what is
    unset).

    :raises SpecError: an unknown name (with the nearest known one), or a field given
        together with its alias
    """
    given: dict[str, Given] = {}
    notes: list[str] = []
    for label, value in tree.items():
        name = ALIASES.get(label, label)
        if name in IGNORED:
            notes.append(f"{name} is ignored: {IGNORED[name]}")
        elif name not in FIELDS:
            raise _unknown(label)
        elif value is not None:
            if name in given:
                reason = f"means the same as {given[name].label}"
                raise Refusal(reason, "give one of them").at(label, "")
            given[name] = Given(label, value)
    return given, tuple(sorted(notes))


def _unknown(label: str) -> Exception:
    hint = "the fields are " + ", ".join(FIELDS)
    refusal = Refusal("is not a field of a container spec", hint, nearest=near(label))
    shown = label if label.isidentifier() and len(label) <= _LONGEST_NAME else ""
    return refusal.at(shown or show(label), show(label))


def near(name: str) -> str:
    """The field or alias that ``name`` most likely means; empty if none is close."""
    if len(name) > _LONGEST_NAME:
        return ""
    word = name.strip().lower().replace("-", "_").replace(" ", "_")
    if word in _SYNONYMS:
        return _SYNONYMS[word]
    known = [*FIELDS, *ALIASES]
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")
