"""Files of repo2docker that no image is made from, and what to do instead. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.spec.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from globus_compute_apptainer.spec.tree import Tree

_JULIA: Final = (
    "Julia environments are not set up here",
    'name an image that has Julia as `base_image` ("julia:1.10"), and instantiate the '
    "project in `postBuild` or `post`",
)

FOREIGN: Final[Mapping[str, tuple[str, str]]] = {
    "Dockerfile": (
        "images are built without Docker, by users who are not root",
        "build it elsewhere, push the image to a registry and name it as `base_image`",
    ),
    "JuliaProject.toml": _JULIA,
    "Project.toml": _JULIA,
    "REQUIRE": (
        "repo2docker itself gave REQUIRE up",
        "write a Project.toml, and see the page on repo2docker for Julia",
    ),
    "default.nix": (
        "nix needs a store of its own at /nix, which images here do not have",
        "export an image with nix (dockerTools) and name it as `base_image`, or use "
        "`conda`",
    ),
    "DESCRIPTION": (
        "R packages are not set up from CRAN snapshots here",
        "use environment.yml with r-base and r-NAME packages, or a `base_image` with R "
        "and install.R",
    ),
}
"""File: why it is not supported, and what to do. In the order of repo2docker."""

R_RUNTIME: Final = (
    "CRAN snapshots are not set up here",
    "use environment.yml with r-base=VERSION and r-NAME packages, or a `base_image` "
    "with that R and install.R",
)

_AT_ROOT_ONLY: Final = ("DESCRIPTION",)
_BESIDE: Final = (
    "; or put requirements.txt or environment.yml into a directory `binder`, or give "
    "one as `files`: then only that is read"
)


def found_in(tree: Tree, folder: str) -> str:
    """The first such file that repo2docker would build from; empty if none."""
    for name in FOREIGN:
        if folder and name in _AT_ROOT_ONLY:
            continue
        if tree.has(f"{folder}/{name}" if folder else name):
            return name
    return ""


def refusal(name: str) -> Refusal:
    """Why there is no image from this file."""
    reason, hint = FOREIGN[name]
    return Refusal(f"is not supported, because {reason}", hint + _BESIDE)
