"""Makes ``engine: {type: ApptainerEngine}`` known to the endpoint.

Runs at the start of *every* interpreter of the environment, through
``globus_compute_apptainer.pth`` beside the packages: so it imports nothing but
:mod:`sys` and does nothing but append one finder to ``sys.meta_path``.

The endpoint looks engines up by ``getattr(globus_compute_endpoint.engines, name)``
(its ``endpoint/config/dispatch.py``) and offers no entry point. When, and only when,
that module is imported, the finder gives it a module-level ``__getattr__`` (PEP 562)
that imports our engine on first use. Nothing of upstream is replaced; where upstream
should one day define such a name or its own ``__getattr__``, that one wins.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # `typing` would cost every interpreter start a millisecond
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

ENGINES = "globus_compute_endpoint.engines"
NAMES = {"ApptainerEngine": "globus_compute_apptainer.endpoint.engine"}


class _Finder:
    """Finds only :data:`ENGINES`, once, by asking the other finders."""

    def find_spec(
        self,
        name: str,
        _path: Sequence[str] | None = None,
        _target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if name != ENGINES:
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec  # noqa: PLC0415 - see the docstring

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """The real loader, followed by :func:`install`."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        install(module)


def install(module: ModuleType) -> None:
    """Let ``module`` resolve our engines' names on first use."""
    inherited = module.__dict__.get("__getattr__")

    def resolve(name: str) -> object:
        if name in NAMES:
            from importlib import import_module  # noqa: PLC0415

            return getattr(import_module(NAMES[name]), name)
        if inherited is not None:
            return inherited(name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    module.__getattr__ = resolve  # type: ignore[method-assign]


def is_live() -> bool:
    """Whether this interpreter would resolve our engines' names."""
    engines = sys.modules.get(ENGINES)
    if engines is not None:
        return (
            getattr(engines.__dict__.get("__getattr__"), "__module__", "") == __name__
        )
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


if ENGINES in sys.modules:  # imported late, for example by a test or a notebook
    install(sys.modules[ENGINES])
elif not is_live():
    sys.meta_path.insert(0, _Finder())
