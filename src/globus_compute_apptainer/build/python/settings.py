"""A ``uv.toml`` that says the same as uv's variables, and more.

Pure. Only there can uv be told how long it may keep what an index has sent: files at
an index never change under one name, but mirrors that do not say so are asked again for
every one of them at every build. Index pages are not kept longer than the index says,
and what is installed is checked by its hash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

FILES_KEPT: Final = "max-age=365000000, immutable"

_NAMED: Final = re.compile(r"([A-Za-z0-9._-]+)=(.+)")
# The last one would have uv pass over the file that is named to it.
_VARIABLES: Final = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_NO_CONFIG")


def replaced(
    environment: Mapping[str, str], public: str = ""
) -> tuple[dict[str, str], str]:
    """The environment without its indexes, and a ``uv.toml`` that has them.

    Empty where there are none, or where the site has a ``uv.toml`` of its own, which
    may say all of that itself.

    :param public: URL of the index that uv takes where none is named; may be empty
    """
    default = environment.get("UV_DEFAULT_INDEX", "").strip() or public
    extra = environment.get("UV_INDEX", "").split()
    if not (default or extra) or "UV_CONFIG_FILE" in environment:
        return dict(environment), ""
    # In uv's order: the first one that has a package wins.
    tables = [_table(place) for place in extra]
    tables += [_table(default, default=True)] if default else []
    left = {n: v for n, v in environment.items() if n not in _VARIABLES}
    return left, "\n".join(tables)


def _table(place: str, *, default: bool = False) -> str:
    named = _NAMED.fullmatch(place)
    name, url = (named[1], named[2]) if named else ("", place)
    rows = ["[[index]]", f"url = {_text(url)}"]
    rows += [f"name = {_text(name)}"] if name else []
    rows += ["default = true"] if default else []
    rows += [f"cache-control = {{ files = {_text(FILES_KEPT)} }}"]
    return "\n".join(rows) + "\n"


def _text(value: str) -> str:
    """A TOML string: of what may stand in one, JSON writes all in the same way."""
    return json.dumps(value, ensure_ascii=False)
