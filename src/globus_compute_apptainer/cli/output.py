"""What people and programs read: JSON, errors, tables, sizes.

Runs in ``gc-apptainer``. Rich is imported only where a table is drawn.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

from globus_compute_apptainer.errors import ContainerError

if TYPE_CHECKING:
    from rich.text import Text

_WIDE = 200  # columns of a table that goes to a file or a pipe


def data(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, default=str))


def error(what: ContainerError, *, as_json: bool) -> None:
    """An error on standard error, rendered, or as one object with its fields."""
    if as_json:
        fields = dataclasses.asdict(what)
        text = json.dumps({"error": fields}, indent=2, default=str)
    else:
        text = f"gc-apptainer: {what.render()}"
    print(text, file=sys.stderr)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Sequence[str] = (),
    stream: IO[str] | None = None,
) -> None:
    """A table without frames; texts are shown as they are, never as markup.

    :param right: headings of the columns whose cells are aligned to the right
    """
    from rich import box  # noqa: PLC0415 - not needed by most calls
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    where = sys.stdout if stream is None else stream
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        justify = "right" if heading in right else "left"
        drawn.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        drawn.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    if where.isatty():
        Console(file=where).print(drawn)
        return
    plain = Console(file=io.StringIO(), width=_WIDE)
    with plain.capture() as text:
        plain.print(drawn)
    for line in text.get().splitlines():
        print(line.rstrip(), file=where)


def size(count: int) -> str:
    """Bytes as people say them: ``118 MB``."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def short(digest: str) -> str:
    """The part of a digest that people compare: twelve digits."""
    return digest.removeprefix("sha256:")[:12]
