"""Reading pickles without running anything that they name.

Runs in worker processes, on what users send; standard library only. A pickle is a
small program: it may import any name and call it. Here a name becomes a stand-in that
takes every call and does nothing, unless it is one of those that the caller allows.

Guaranteed: no code is imported or called but what the caller allows. Not guaranteed:
that a hostile pickle is read in little memory; the same is true where it runs.
"""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Name = tuple[str, str]


class Inert:
    """What stands for an object that is not made: it can be filled, to no effect."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Inert:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, _state: Any) -> None:
        pass

    def __setitem__(self, _key: Any, _value: Any) -> None:
        pass

    def __call__(self, *_args: Any, **_kwargs: Any) -> Inert:
        return Inert()

    def append(self, _item: Any) -> None:
        pass

    def extend(self, _items: Any) -> None:
        pass

    def add(self, _item: Any) -> None:
        pass


class Reader(pickle.Unpickler):
    """An unpickler that knows some names, and keeps those that it does not know.

    :param known: what to put for a name, by module and name
    """

    def __init__(
        self, pickled: bytes, known: Mapping[Name, Callable[..., Any]]
    ) -> None:
        super().__init__(io.BytesIO(pickled))
        self._known = known
        self.unknown: list[Name] = []

    def find_class(self, module: str, name: str) -> Any:
        found = self._known.get((module, name))
        if found is not None:
            return found
        self.unknown.append((module, name))
        return type("Inert", (Inert,), {})
