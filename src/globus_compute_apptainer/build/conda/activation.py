"""What activating a conda environment means to every program in the image.

Runs in the endpoint process. ``conda activate`` runs scripts of the packages
(``etc/conda/activate.d``) in the user's shell. Here they run once, while the layer is
made, in a container of the base that sees the environment read-only; what they export
is written down as plain assignments. So containers start as fast as without them,
whatever shell the scripts were written for, and one that fails hurts nobody.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from globus_compute_apptainer.build.apptainer import ALONE, bind
from globus_compute_apptainer.build.layer import ENVIRONMENT_SCRIPTS, HOME

if TYPE_CHECKING:
    from globus_compute_apptainer.build.job import Job
    from globus_compute_apptainer.build.layers import Below

SCRIPT: Final = f"{ENVIRONMENT_SCRIPTS}/92-gc-apptainer-conda.sh"

_INSIDE: Final = f"{HOME}/activation"
_RUN: Final = f"""\
env -0 >{_INSIDE}/before || exit
for script in "$CONDA_PREFIX"/etc/conda/activate.d/*.sh; do
    command . "$script" >&2
done
env -0 >{_INSIDE}/after
"""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHELLS_OWN: Final = re.compile(
    r"_|PWD|OLDPWD|SHLVL|PATH|HOME|PS1|TMPDIR|(BASH|CONDA|_CE|APPTAINER|SINGULARITY).*"
)


def write(
    job: Job,
    below: Below,
    root: Path,
    prefix: str,
    variables: Sequence[tuple[str, str]],
) -> None:
    """Write the script that Apptainer sources at every start.

    :param root: tree of the layer; the environment is in it at ``prefix``
    :param variables: the user's own, which come last
    """
    given = dict(_package_variables(root / prefix.lstrip("/")))
    path, exports = f"{prefix}/bin", dict(given)
    if any((root / prefix.lstrip("/") / "etc/conda/activate.d").glob("*.sh")):
        added, more = _activated(job, below, root, prefix, given)
        path, exports = f"{added}{path}", {**exports, **more}
    target = root / SCRIPT.lstrip("/")
    target.parent.mkdir(parents=True)
    target.write_text(
        script(prefix, path, {**exports, **dict(variables)}), encoding="utf-8"
    )
    target.chmod(0o755)


def script(prefix: str, path: str, exports: Mapping[str, str]) -> str:
    """POSIX shell; ``path`` goes before the image's own PATH."""
    lines = [
        f"export CONDA_PREFIX={quoted(prefix)}",
        f"export CONDA_DEFAULT_ENV={quoted(prefix)}",
        "export CONDA_SHLVL=1",
        f'export PATH={quoted(path)}"${{PATH:+:$PATH}}"',
    ]
    lines += [f"export {n}={quoted(v)}" for n, v in sorted(exports.items())]
    return "".join(f"{line}\n" for line in lines)


def quoted(text: str) -> str:
    """``text`` as one word of a shell; Apptainer's own keeps the backslash of the
    usual way to write a quote (``'\\''``)."""
    escaped = text.replace("'", "'\"'\"'")
    return f"'{escaped}'"


def own_files(tree: Path, folder: str, pattern: str) -> list[Path]:
    """Files of an environment; none that a link of a package leads to elsewhere."""
    place = tree.resolve() / folder
    if place.resolve() != place:
        return []
    found = sorted(place.glob(pattern))
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _package_variables(tree: Path) -> Iterator[tuple[str, str]]:
    """What packages set by files alone (``etc/conda/env_vars.d``)."""
    for path in own_files(tree, "etc/conda/env_vars.d", "*.json"):
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text(encoding="utf-8"))
            for name, value in found.items() if isinstance(found, dict) else ():
                if _NAME.fullmatch(name) and "\0" not in str(value):
                    yield name, str(value)


def _activated(
    job: Job, below: Below, root: Path, prefix: str, given: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """What the scripts add before PATH, and the other variables they set."""
    tree = root / prefix.lstrip("/")
    with tempfile.TemporaryDirectory(prefix="activate-", dir=job.scratch) as folder:
        command = [_shell(below, tree, prefix), "-c", _RUN]
        binds = [bind(tree, prefix, read_only=True), bind(folder, _INSIDE)]
        argv = job.apptainer.exec_argv(
            below.sif, command, binds=binds, options=ALONE, cwd="/"
        )
        inside = {
            **given,
            "CONDA_PREFIX": prefix,
            "CONDA_DEFAULT_ENV": prefix,
            "CONDA_SHLVL": "1",
            "PATH": f"{prefix}/bin:{below.inventory.path}",
        }
        env = job.apptainer.environment(inside=inside)
        job.attempt(argv, env=env, shown="activate the conda environment")
        before, after = (_read(Path(folder, name)) for name in ("before", "after"))
    if not after:
        job.transcript.note(
            "the activation scripts of the conda packages cannot run in the base "
            "image; what they set is not set"
        )
        return "", {}
    changed = {
        name: value
        for name, value in after.items()
        if before.get(name) != value and not _SHELLS_OWN.fullmatch(name)
    }
    path, old = after.get("PATH", ""), before.get("PATH", "")
    return path.removesuffix(old) if path.endswith(f":{old}") else "", changed


def _shell(below: Below, tree: Path, prefix: str) -> str:
    """Bash where there is one, since most scripts are written for it."""
    if below.inventory.has_bash:
        return "bash"
    return f"{prefix}/bin/bash" if (tree / "bin/bash").exists() else "sh"


def _read(path: Path) -> dict[str, str]:
    """Variables as ``env -0`` prints them, those that a shell can export."""
    if path.is_symlink() or not path.is_file():
        return {}
    text = path.read_bytes().decode("utf-8", "replace")
    pairs = (entry.partition("=") for entry in text.split("\0") if entry)
    return {name: value for name, _, value in pairs if _NAME.fullmatch(name)}
