"""Conda channels: what a name stands for, and where it is had from here.

Runs in the endpoint process; pure. Locks and keys hold public URLs, so that they mean
the same at another site; a site's mirrors, which may need credentials, are used on the
way to the network only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from globus_compute_apptainer.spec.matchspec import ALIAS, channel_of

if TYPE_CHECKING:
    from globus_compute_apptainer.config import BuildConfig
    from globus_compute_apptainer.spec.conda import Conda

# Names that conda itself does not look up at its alias.
_ANACONDA: Final = "https://repo.anaconda.com/pkgs/"
_BUILT_IN: Final[Mapping[str, tuple[str, ...]]] = {
    "defaults": (f"{_ANACONDA}main", f"{_ANACONDA}r"),
    **{f"{p}{n}": (f"{_ANACONDA}{n}",) for n in ("main", "r") for p in ("", "pkgs/")},
}
# The solver shows some of them masked, so what is compared is without them.
_SECRET: Final = re.compile(r"(?<=://)[^\s/@]+@|(?<=/t/)[^\s/]+")


@dataclass(frozen=True)
class Channels:
    """The channels of one environment.

    :param urls: public URLs, the first one wins
    :param mirrors: ``(public URL, URL from here)``
    """

    urls: tuple[str, ...]
    mirrors: tuple[tuple[str, str], ...] = ()

    @classmethod
    def wanted(cls, conda: Conda, config: BuildConfig) -> Channels:
        """Those that the user names, or the endpoint's; then those of match specs."""
        listed = conda.channels or config.conda_channels
        names = dict.fromkeys((*listed, *conda.named_channels))
        urls = dict.fromkeys(url for name in names for url in public_urls(name))
        return cls(tuple(urls), _mirrors(config))

    @classmethod
    def locked(cls, packages: Any, config: BuildConfig) -> Channels:
        """Those that the packages of a lock came from."""
        urls = dict.fromkeys(str(package["channel"]) for package in packages)
        return cls(tuple(urls), _mirrors(config))

    def here(self, url: str) -> str:
        """Where something with this public URL is had from."""
        return _moved(url, self.mirrors)

    def public(self, url: str) -> str:
        """The public URL of what was had from ``url``, without credentials."""
        return _moved(_plain(url), self._back)

    def spec(self, written: str) -> str:
        """A match spec with its channel as it is reached from here."""
        name = channel_of(written)
        if not name:
            return written
        return self.here(public_urls(name)[0]) + written.removeprefix(name)

    def told(self, text: str) -> str:
        """An error's words, with public URLs."""
        text = _plain(text)
        for near, far in self._back:
            text = text.replace(near, far)
        return text

    @property
    def _back(self) -> list[tuple[str, str]]:
        return [(_plain(near), far) for far, near in self.mirrors]


def public_urls(name: str) -> tuple[str, ...]:
    """What a channel in normal form stands for."""
    if "://" in name:
        return (name,)
    return _BUILT_IN.get(name) or (ALIAS + name,)


def _mirrors(config: BuildConfig) -> tuple[tuple[str, str], ...]:
    return tuple(
        (far, near) for name, near in config.conda_mirrors for far in public_urls(name)
    )


def _moved(url: str, places: Any) -> str:
    for old, new in places:
        if url == old or url.startswith(f"{old}/"):
            return str(new) + url.removeprefix(old)
    return url


def _plain(text: str) -> str:
    """Without credentials in URLs."""
    return _SECRET.sub("", text)
