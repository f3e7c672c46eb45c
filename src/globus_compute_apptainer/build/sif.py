"""What is in a SIF file, by its descriptors.

Runs in the endpoint process; reads only. The layout is that of SIF version 01, which
all Apptainers write (github.com/apptainer/sif, ``pkg/sif/descriptor.go``).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

DEFINITION: Final = 0x4001
PARTITION: Final = 0x4004
JSON: Final = 0x4006

SQUASHFS: Final = 1
ENCRYPTED: Final = 5
SYSTEM: Final = 2
"""Of partitions: the one that containers start from."""

OVERLAY: Final = 4
"""Of partitions: one that is laid over it."""

_MAGIC: Final = b"SIF_MAGIC\0"
_HEADER: Final = struct.Struct("<32x10s3x3x16x8x8xqqqqqq")
_DESCRIPTOR: Final = struct.Struct("<i?III7q128s384s")
_PARTITION: Final = struct.Struct("<ii")
_MOST: Final = 4096
_GROUP_MASK: Final = 0x0FFFFFFF


class SifError(ValueError):
    """A file that is not a (whole) SIF."""


@dataclass(frozen=True)
class Part:
    """One data object.

    :param kind: such as :data:`PARTITION`
    :param filesystem: of a partition, such as :data:`SQUASHFS`; else 0
    :param role: of a partition, such as :data:`SYSTEM`; else 0
    """

    number: int
    group: int
    kind: int
    name: str
    offset: int
    size: int
    filesystem: int = 0
    role: int = 0


def parts(path: Path) -> list[Part]:
    """The data objects of a SIF, as they lie in it.

    :raises SifError: it is none, or ends too early
    :raises OSError: it cannot be read
    """
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or head[32:42] != _MAGIC:
            raise SifError("not a SIF file")
        _, _, total, offset, _, _, _ = _HEADER.unpack(head)
        if not 0 <= total <= _MOST or offset < 0:
            raise SifError("a broken SIF file")
        file.seek(offset)
        rows = file.read(total * _DESCRIPTOR.size)
        length = file.seek(0, 2)
    if len(rows) < total * _DESCRIPTOR.size:
        raise SifError("a SIF file that ends too early")
    found = [_part(row) for row in _DESCRIPTOR.iter_unpack(rows) if row[1]]
    if any(part.offset + part.size > length for part in found):
        raise SifError("a SIF file that ends too early")
    return found


def content(path: Path, part: Part) -> bytes:
    """The bytes of a (small) data object."""
    with path.open("rb") as file:
        file.seek(part.offset)
        return file.read(part.size)


def system(found: list[Part]) -> Part:
    """The partition that containers start from.

    :raises SifError: there is none
    """
    for part in found:
        if part.kind == PARTITION and part.role == SYSTEM:
            return part
    raise SifError("a SIF file without an image")


def overlays(found: list[Part]) -> list[Part]:
    """The partitions that are laid over that one, the lowest first.

    :raises SifError: one is not of the kind that this package makes
    """
    laid = [p for p in found if p.kind == PARTITION and p.role == OVERLAY]
    if any(part.filesystem != SQUASHFS for part in laid):
        raise SifError("a SIF file with an overlay that is not read-only")
    return laid


def _part(row: tuple[int, bool, int, int, int, int, int]) -> Part:
    kind, _, number, group, _, offset, size, *_, name, extra = row  # type: ignore[misc]
    partition = kind == PARTITION
    filesystem, role = _PARTITION.unpack_from(extra) if partition else (0, 0)
    return Part(
        number=number,
        group=group & _GROUP_MASK,
        kind=kind,
        name=name.rstrip(b"\0").decode("utf-8", "replace"),
        offset=offset,
        size=size,
        filesystem=filesystem,
        role=role,
    )
