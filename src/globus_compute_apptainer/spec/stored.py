"""Back from the canonical form of an image to the image. Pure.

For what is named by its digest alone: the canonical form is in the manifest of an image
in the cache, and so may have been written by somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from globus_compute_apptainer.spec.conda import Conda
from globus_compute_apptainer.spec.model import ImageSpec


def image_of(canonical: Mapping[str, Any], digest: str) -> ImageSpec | None:
    """The image spec that a manifest holds.

    :param canonical: :meth:`ImageSpec.canonical`, decoded
    :param digest: what it must have
    :returns: None unless it is whole: what does not have that digest says nothing
    """
    try:
        conda = canonical.get("conda")
        found = ImageSpec(
            base_image=canonical["base_image"],
            agent=canonical["agent"],
            python=canonical.get("python"),
            pip=tuple(canonical.get("pip", ())),
            apt=tuple(canonical.get("apt", ())),
            post=tuple(canonical.get("post", ())),
            conda=None if conda is None else _conda(conda),
            payload=canonical.get("payload"),
            files=_pairs(canonical.get("files", ())),
            build_env=_pairs(canonical.get("build_env", ())),
        )
        return found if found.digest == digest else None
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _conda(canonical: Mapping[str, Any]) -> Conda:
    return Conda(
        tuple(canonical["specs"]),
        tuple(canonical.get("channels", ())),
        _pairs(canonical.get("variables", ())),
    )


def _pairs(given: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in given)
