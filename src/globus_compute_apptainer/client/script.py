"""Containers from the ``# /// script`` block of a script (PEP 723).

Runs where the SDK runs. The block is what ``uv run`` and Groundhog read; the script
itself is not run, and is not sent.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from globus_compute_apptainer.client import pythons, uv_settings
from globus_compute_apptainer.client.outcome import (
    checked,
    refuse,
    text_of,
    texts,
    toml,
    unreadable,
)

_BLOCK: Final = re.compile(
    r"^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(?:^#(?:| .*)$\s)+)^# ///$",
    re.MULTILINE,
)
_KNOWN: Final = frozenset({"requires-python", "dependencies", "tool"})


def from_script(
    script: str | Path, *, python: str | None = None, ignore: Collection[str] = ()
) -> dict[str, Any]:
    """The spec that a script's own block means::

        Executor(..., resource_specification={"container": from_script("work.py")})

    ``requires-python`` chooses a minor version of Python (see
    :func:`.pythons.chosen`), ``dependencies`` become ``pip``. Of ``[tool.uv]``,
    sources that are archives on the web are kept and settings of the machine are left
    out. ``[tool.hog]`` (Groundhog) says where to run, not in what, and is left to
    Groundhog, as are the tables of other tools.

    :param script: a path, or the text of a script
    :param python: minor version to ask for, where the script lets it
    :param ignore: settings to do without, as ``tool.uv.exclude-newer``
    :raises SpecError: there is no such block; it is not sound; or it asks for what a
        container spec cannot carry, all of that named
    """
    text, where = _text(script)
    block = _block(text, where)
    dependencies, problems = uv_settings.apply(
        block, texts(block, "dependencies", where), where, ignore
    )
    problems += [name for name in sorted(block) if name not in _KNOWN]
    refuse(problems, where, uv_settings.HINT)
    requires = block.get("requires-python", "")
    if not isinstance(requires, str):
        raise unreadable(where, "requires-python is not a text")
    return checked(
        {"python": pythons.chosen(requires, where, python), "pip": dependencies}
    )


def has_block(text: str) -> bool:
    """Whether a script has a block that :func:`from_script` would read."""
    return any(found["type"] == "script" for found in _BLOCK.finditer(_lines(text)))


def _text(script: str | Path) -> tuple[str, str]:
    """The script's text, and what to call it."""
    if isinstance(script, str) and ("\n" in script or script.startswith("#")):
        return script, "the script"
    return text_of(Path(script)), str(script)


def _block(text: str, where: str) -> dict[str, Any]:
    blocks = [b for b in _BLOCK.finditer(_lines(text)) if b["type"] == "script"]
    if len(blocks) != 1:
        count = "no" if not blocks else "more than one"
        raise unreadable(
            where, f"it has {count} `# /// script` block", "see PEP 723 for its form"
        )
    lines = blocks[0]["content"].splitlines()
    return toml("\n".join(line[2:] for line in lines), where)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n") + "\n"
