"""What a build needs of this site to reach the network: indexes, CA, proxies.

Runs in the endpoint process. A build sees nothing of the host's environment; this
hands in the few settings without which pip, uv and apt find nothing on many sites,
and those only. Settings travel in files that the build sees and the image does not
keep; :meth:`SiteAccess.redact` removes credentials from what is logged.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from globus_compute_apptainer.build import indexes
from globus_compute_apptainer.build.system.plan import KIT
from globus_compute_apptainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from globus_compute_apptainer.build.indexes import Indexes
    from globus_compute_apptainer.config import BuildConfig

CA_INSIDE: Final = f"{KIT}/ca.crt"
UV_CONFIG_INSIDE: Final = f"{KIT}/uv.toml"

USUAL_CA_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_CA_VARIABLES: Final = (
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)
# What tools inside are told to trust; UV_NATIVE_TLS is the name before uv 0.10.
_CA_VARIABLES_INSIDE: Final = (*_CA_VARIABLES, "GIT_SSL_CAINFO")
_UV_PASSED: Final = re.compile(
    r"UV_(INDEX_\w+_(USERNAME|PASSWORD)|INDEX_STRATEGY|INSECURE_HOST|HTTP_TIMEOUT"
    r"|OFFLINE|SYSTEM_CERTS|NATIVE_TLS|TORCH_BACKEND|EXCLUDE_NEWER)\Z"
)
_HOST_PASSED: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_HOST_SETTING: Final = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|PRERELEASE"
    r"|RESOLUTION|CONCURRENT_\w+|HTTP_\w+)\Z|SSL_CERT_(FILE|DIR)\Z|"
    + _UV_PASSED.pattern
)
_PROXIES: Final = re.compile(r"(https?|ftp|all|no)_proxy\Z", re.IGNORECASE)
# For the Apptainer that builds; it hands none of them to what it builds.
_APPTAINER_PASSED: Final = (
    "APPTAINER_CACHEDIR",
    "APPTAINER_DOCKER_USERNAME",
    "APPTAINER_DOCKER_PASSWORD",
    "APPTAINER_NOHTTPS",
)
_USER_INFO: Final = re.compile(r"(?<=://)(?!git@)[^\s/@'\"]+@")
_SECRET_NAME: Final = re.compile(r"PASSWORD|TOKEN|SECRET|_KEY\b", re.IGNORECASE)
_FIXED: Final = MappingProxyType(
    {
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INPUT": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": f"{KIT}/work/tmp",
        "UV_CACHE_DIR": f"{KIT}/work/uv-cache",
        "UV_LINK_MODE": "copy",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "XDG_CACHE_HOME": f"{KIT}/work/cache",
    }
)


@dataclass(frozen=True)
class SiteAccess:
    """How builds on this host reach packages.

    :param variables: environment inside a build
    :param host: environment of uv on the host: the same settings with the host's
        own paths, and nothing else of the host's
    :param folders: host directories that a build sees as ``KIT/site/0``, ``1``, …
    :param ca_bundle: PEM file on the host, seen inside as :data:`CA_INSIDE`
    :param uv_config: ``uv.toml`` on the host, seen as :data:`UV_CONFIG_INSIDE`;
        local paths that it names are not made visible
    :param caller: environment of the Apptainer that builds, beyond the scrubbed one
    :param secrets: values that must not be logged
    """

    variables: Mapping[str, str] = field(default_factory=lambda: _FIXED)
    folders: tuple[Path, ...] = ()
    ca_bundle: Path | None = None
    uv_config: Path | None = None
    caller: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    host: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_host(
        cls, environ: Mapping[str, str], config: BuildConfig, prefix: Path | None = None
    ) -> SiteAccess:
        """What ``environ`` and the host's files say.

        Taken are pip's and uv's index settings, the CA bundle, proxies, and
        ``build.env`` from the configuration, which overrides the rest.

        :param prefix: where pip's per-environment file is; ``sys.prefix`` if None
        :raises ConfigError: the configured ``build.ca_bundle`` cannot be read
        """
        pip = indexes.from_pip(environ, prefix or Path(sys.prefix))
        uv_file = indexes.uv_file(environ)
        own = indexes.from_uv(environ)
        uv = own or (None if uv_file else pip)
        bundle = _ca_bundle(environ, config, pip.certificates)
        places = _Places()
        variables = {
            **_FIXED,
            **_proxies(environ, pip.proxy),
            **_for_pip(pip, places),
            **(_for_uv(uv, places) if uv else {}),
            **{n: v for n, v in environ.items() if _UV_PASSED.match(n)},
            **(dict.fromkeys(_CA_VARIABLES_INSIDE, CA_INSIDE) if bundle else {}),
            **({"UV_CONFIG_FILE": UV_CONFIG_INSIDE} if uv_file else {}),
        }
        host = {
            **{n: environ[n] for n in _HOST_PASSED if n in environ},
            **_proxies(environ, pip.proxy),
            **(_for_uv(uv, _Here()) if uv else {}),
            **{n: v for n, v in environ.items() if _UV_PASSED.match(n)},
            **({"SSL_CERT_FILE": str(bundle)} if bundle else {}),
            **({"UV_CONFIG_FILE": str(uv_file)} if uv_file else {"UV_NO_CONFIG": "1"}),
        }
        caller = {n: environ[n] for n in _APPTAINER_PASSED if n in environ}
        if bundle:
            caller["SSL_CERT_FILE"] = str(bundle)
        for name, value in config.env:
            caller[name] = value
            if not name.startswith(("APPTAINER", "SINGULARITY")):
                variables[name] = value
            if _HOST_SETTING.match(name) or _PROXIES.match(name):
                host[name] = value
        variables = {n: v for n, v in variables.items() if "\n" not in v}
        # One name may have another value on the host.
        found = [*_secrets({**variables, **caller}), *_secrets(host)]
        folders = tuple(places.folders)
        secrets = tuple(dict.fromkeys(found))
        return cls(variables, folders, bundle, uv_file, caller, secrets, host)

    @property
    def no_index(self) -> bool:
        """Whether packages come from ``--find-links`` places only."""
        return "PIP_NO_INDEX" in self.variables

    def redact(self, text: str) -> str:
        """``text`` without credentials: those of URLs, and values known as secret."""
        for secret in self.secrets:
            text = text.replace(secret, "****")
        return _USER_INFO.sub("****@", text)

    def apt_conf(self) -> str:
        """Options for apt inside a build; they come after the base's own."""
        lines = [
            'APT::Sandbox::User "root";',  # _apt cannot be switched to in a namespace
            'APT::Update::Error-Mode "any";',
            'Acquire::Retries "2";',
            'Acquire::Languages "none";',
            # Unpacked in a third of the time that xz takes, and a third larger.
            'Acquire::CompressionTypes::Order:: "gz";',
            'Dpkg::Use-Pty "false";',
            'Dpkg::Progress-Fancy "false";',
        ]
        if self.ca_bundle:
            lines.append(f'Acquire::https::CaInfo "{CA_INSIDE}";')
        return "".join(f"{line}\n" for line in lines)


class _Places:
    """Gives every local place that an index setting names a path inside."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def inside(self, place: str) -> str | None:
        """The place as a build names it; None if it is local and not there.

        A name before ``=`` (uv) is kept. Of an index directory ``…/simple`` the
        parent is made visible, since its pages often link to ``../../packages``;
        links that leave that directory, or are absolute, lead nowhere inside.
        """
        name, found, url = place.rpartition("=") if _named(place) else ("", "", place)
        path = _local_path(url)
        if path is None:
            return place
        try:
            if not path.is_dir():
                return None
        except OSError:
            return None
        tail = ""
        if path.name == "simple" and len(path.parts) > 2:
            path, tail = path.parent, "/simple"
        if path not in self.folders:
            self.folders.append(path)
        inside = f"{KIT}/site/{self.folders.index(path)}{tail}"
        scheme = "file://" if url.startswith("file:") else ""
        return f"{name}{found}{scheme}{inside}"

    def all_inside(self, places: Iterable[str]) -> list[str]:
        return [p for place in places if (p := self.inside(place)) is not None]


class _Here(_Places):
    """Names places as the host does."""

    def inside(self, place: str) -> str | None:
        if super().inside(place) is None:
            return None
        name, found, url = place.rpartition("=") if _named(place) else ("", "", place)
        return f"{name}{found}{Path(url).expanduser()}" if url[:1] == "~" else place


def _named(place: str) -> bool:
    return re.match(r"[A-Za-z0-9._-]+=", place) is not None


def _local_path(place: str) -> Path | None:
    if place.startswith("file:"):
        return Path(unquote(urlsplit(place).path))
    return Path(place).expanduser() if place.startswith(("/", "~")) else None


def _for_pip(pip: Indexes, places: _Places) -> dict[str, str]:
    found = {
        "PIP_INDEX_URL": places.inside(pip.default) or "",
        "PIP_EXTRA_INDEX_URL": " ".join(places.all_inside(pip.extra)),
        "PIP_FIND_LINKS": " ".join(places.all_inside(pip.links)),
        "PIP_NO_INDEX": "1" if pip.no_index else "",  # uv: an option in stages.sh
        "PIP_TRUSTED_HOST": " ".join(pip.trusted),
        "PIP_DEFAULT_TIMEOUT": pip.timeout,
    }
    return {name: value for name, value in found.items() if value}


def _for_uv(uv: Indexes, places: _Places) -> dict[str, str]:
    extra = places.all_inside(uv.extra)
    found = {
        "UV_DEFAULT_INDEX": places.inside(uv.default) or "",
        "UV_INDEX": " ".join(extra),
        "UV_FIND_LINKS": ",".join(places.all_inside(uv.links)),
        "UV_INSECURE_HOST": " ".join(uv.trusted),
        "UV_HTTP_TIMEOUT": uv.timeout,
        "UV_INDEX_STRATEGY": "unsafe-best-match" if extra and uv.merge else "",
    }
    return {name: value for name, value in found.items() if value}


def _proxies(environ: Mapping[str, str], proxy: str) -> dict[str, str]:
    found = dict.fromkeys(("http_proxy", "https_proxy"), proxy) if proxy else {}
    return {**found, **{n: v for n, v in environ.items() if _PROXIES.match(n)}}


def _ca_bundle(
    environ: Mapping[str, str], config: BuildConfig, pip_cert: str
) -> Path | None:
    if config.ca_bundle is not None:
        if not _is_file(config.ca_bundle):
            raise ConfigError(
                f"{config.ca_bundle} is not a readable file", key="build.ca_bundle"
            )
        return config.ca_bundle
    named = [*(environ.get(name, "") for name in _CA_VARIABLES), pip_cert]
    candidates = [Path(name) for name in [*named, *USUAL_CA_BUNDLES] if name]
    return next((path for path in candidates if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    try:
        with path.open("rb"):
            return path.is_file()
    except OSError:
        return False


def _secrets(variables: Mapping[str, str]) -> Iterator[str]:
    """Passwords among the values, and those in URLs, as they are written there."""
    for name, value in variables.items():
        if _SECRET_NAME.search(name) and len(value) >= 4:
            yield value
        for user_info in re.findall(r"://([^\s/@]+)@", value):
            password = user_info.partition(":")[2]
            yield from {p for p in (password, unquote(password)) if len(p) >= 4}
