"""Which proxy leads to a URL.

Runs in the endpoint process; pure. The rules are those of Go's programs,
Apptainer among them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Proxies:
    """The proxy settings of one environment.

    :param by_scheme: proxy URL for ``http``, ``https`` and ``all``
    :param direct: hosts, domains, addresses and networks that need none
    """

    by_scheme: Mapping[str, str]
    direct: tuple[str, ...] = ()

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> Proxies:
        """From ``http_proxy`` and the like; lower case wins."""
        found: dict[str, str] = {}
        for scheme in ("http", "https", "all", "no"):
            name = f"{scheme}_proxy"
            found[scheme] = variables.get(name) or variables.get(name.upper(), "")
        direct = found.pop("no").replace(",", " ").split()
        return cls({k: v for k, v in found.items() if v}, tuple(direct))

    def for_url(self, url: str) -> dict[str, str]:
        """As ``requests`` takes it; empty for a direct connection."""
        parts = urlsplit(url)
        proxy = self.by_scheme.get(parts.scheme) or self.by_scheme.get("all")
        if not proxy or self._is_direct(parts.hostname or "", parts.port):
            return {}
        return {parts.scheme: proxy if "://" in proxy else f"http://{proxy}"}

    def _is_direct(self, host: str, port: int | None) -> bool:
        if host == "localhost" or _in_network(host, "127.0.0.0/8") or host == "::1":
            return True
        for rule in self.direct:
            name, _, wanted = (
                rule.partition(":") if rule.count(":") == 1 else (rule, "", "")
            )
            if wanted and wanted != str(port):
                continue
            name = name.removeprefix("*").lower().removeprefix(".")
            if rule == "*" or host == name or (name and host.endswith(f".{name}")):
                return True
            if _in_network(host, rule):
                return True
        return False


def _in_network(host: str, network: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
