"""What of the host's settings gets into builds, and what must not."""

from __future__ import annotations

from pathlib import Path

import pytest

from globus_compute_apptainer.build import indexes
from globus_compute_apptainer.build.site import CA_INSIDE, SiteAccess
from globus_compute_apptainer.build.system.plan import KIT
from globus_compute_apptainer.config import BuildConfig
from globus_compute_apptainer.errors import ConfigError


@pytest.fixture(autouse=True)
def only_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """No pip or uv configuration but that of variables and of ``tmp_path/home``."""
    conf = tmp_path / "home/.config/pip/pip.conf"
    monkeypatch.setattr(indexes, "_pip_files", lambda *args: [conf])
    monkeypatch.setattr(indexes, "uv_file", lambda environ: None)


def site(environ: dict[str, str], **config) -> SiteAccess:
    return SiteAccess.from_host(environ, BuildConfig(**config))


def chosen(found: SiteAccess, *prefixes: str) -> dict[str, str]:
    return {n: v for n, v in found.variables.items() if n.startswith(prefixes)}


def test_the_hosts_environment_does_not_get_in():
    environ = {"HOME": "/h", "AWS_SECRET_ACCESS_KEY": "x", "PATH": "/p", "LANG": "C"}
    found = site(environ).variables
    assert not {"HOME", "AWS_SECRET_ACCESS_KEY", "PATH", "LANG"} & set(found)


def test_pip_settings_reach_pip_and_uv():
    found = site(
        {
            "PIP_INDEX_URL": "https://mirror.example/simple",
            "PIP_EXTRA_INDEX_URL": "https://b/simple https://c/simple",
            "PIP_TRUSTED_HOST": "mirror.example",
            "PIP_DEFAULT_TIMEOUT": "180",
        }
    ).variables
    assert found["PIP_INDEX_URL"] == found["UV_DEFAULT_INDEX"]
    assert found["UV_INDEX"] == found["PIP_EXTRA_INDEX_URL"]
    assert found["UV_INDEX_STRATEGY"] == "unsafe-best-match"  # as pip does
    assert found["UV_INSECURE_HOST"] == "mirror.example"
    assert found["UV_HTTP_TIMEOUT"] == "180"


def test_uvs_own_settings_come_before_pips():
    found = site(
        {
            "PIP_INDEX_URL": "https://pip/simple",
            "UV_DEFAULT_INDEX": "https://uv/simple",
            "UV_INDEX": "corp=https://corp/simple",
            "UV_INDEX_CORP_USERNAME": "me",
            "UV_INDEX_CORP_PASSWORD": "secret",
            "UV_INDEX_STRATEGY": "first-index",
            "UV_PYTHON": "/usr/bin/python3",
            "UV_CACHE_DIR": "/home/me/cache",
        }
    ).variables
    assert found["UV_DEFAULT_INDEX"] == "https://uv/simple"
    assert found["PIP_INDEX_URL"] == "https://pip/simple"
    assert found["UV_INDEX"] == "corp=https://corp/simple"
    assert found["UV_INDEX_CORP_PASSWORD"] == "secret"
    assert found["UV_INDEX_STRATEGY"] == "first-index"
    assert found["UV_CACHE_DIR"] == f"{KIT}/work/uv-cache"
    assert "UV_PYTHON" not in found


def test_local_places_are_bound_where_they_exist(tmp_path: Path):
    for name in ("wheels", "index/simple", "with space"):
        (tmp_path / name).mkdir(parents=True)
    found = site(
        {
            "PIP_INDEX_URL": f"file://{tmp_path}/index/simple",
            "PIP_FIND_LINKS": f"{tmp_path}/wheels {tmp_path}/none https://x/links",
            "PIP_EXTRA_INDEX_URL": f"file://{tmp_path}/none file://{tmp_path}/with%20space",
        }
    )
    assert found.folders == (
        tmp_path / "index",  # its pages may link to ../../packages
        tmp_path / "with space",
        tmp_path / "wheels",
    )
    variables = found.variables
    assert variables["UV_DEFAULT_INDEX"] == f"file://{KIT}/site/0/simple"
    assert variables["UV_INDEX"] == f"file://{KIT}/site/1"
    assert variables["PIP_FIND_LINKS"] == f"{KIT}/site/2 https://x/links"
    assert variables["UV_FIND_LINKS"] == f"{KIT}/site/2,https://x/links"


def test_proxies_and_pips_own():
    environ = {"https_proxy": "http://p:1", "NO_PROXY": "x", "PIP_PROXY": "http://q:2"}
    found = chosen(site(environ), "http", "NO_")
    assert found == {
        "http_proxy": "http://q:2",
        "https_proxy": "http://p:1",
        "NO_PROXY": "x",
    }


def test_ca_bundle_in_order(tmp_path: Path):
    files = {name: tmp_path / name for name in ("config", "ssl", "pip", "requests")}
    for path in files.values():
        path.write_text("PEM")
    environ = {
        "SSL_CERT_FILE": str(files["ssl"]),
        "PIP_CERT": str(files["pip"]),
        "REQUESTS_CA_BUNDLE": str(files["requests"]),
    }
    assert site(environ, ca_bundle=files["config"]).ca_bundle == files["config"]
    for variable, name in [("SSL_CERT_FILE", "ssl"), ("PIP_CERT", "pip")]:
        assert site(environ).ca_bundle == files[name]
        environ[variable] = str(tmp_path / "none")
    found = site(environ)
    assert found.ca_bundle == files["requests"]
    assert set(chosen(found, "SSL_", "PIP_CERT", "REQUESTS", "CURL").values()) == {
        CA_INSIDE
    }
    assert found.caller["SSL_CERT_FILE"] == str(files["requests"])
    assert f'Acquire::https::CaInfo "{CA_INSIDE}";' in found.apt_conf()


def test_a_configured_ca_bundle_must_be_there(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        site({}, ca_bundle=tmp_path / "none")
    assert caught.value.key == "build.ca_bundle"


def test_build_env_comes_last_and_apptainers_own_stays_outside():
    found = site(
        {"PIP_INDEX_URL": "https://a/simple", "APPTAINER_CACHEDIR": "/cache"},
        env=(("PIP_INDEX_URL", "https://b/simple"), ("APPTAINER_NOHTTPS", "1")),
    )
    assert found.variables["PIP_INDEX_URL"] == "https://b/simple"
    assert "APPTAINER_NOHTTPS" not in found.variables
    assert found.caller["APPTAINER_NOHTTPS"] == "1"
    assert found.caller["APPTAINER_CACHEDIR"] == "/cache"


def test_a_value_with_a_line_break_cannot_become_two_variables():
    assert (
        "UV_INSECURE_HOST"
        not in site({"UV_INSECURE_HOST": "a\nLD_PRELOAD=x"}).variables
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://me:s3cret@host/simple/", "GET https://****@host/simple/"),
        (
            "https://token@host/x and http://a:b@c/",
            "https://****@host/x and http://****@c/",
        ),
        ("git+ssh://git@host/repo", "git+ssh://git@host/repo"),
        ("mail me@example.org", "mail me@example.org"),
        ("https://host/@scope/x", "https://host/@scope/x"),
    ],
)
def test_credentials_in_urls_are_redacted(text: str, shown: str):
    assert SiteAccess().redact(text) == shown


def test_known_secrets_are_redacted_wherever_they_are():
    found = site(
        {
            "PIP_INDEX_URL": "https://me:p%40ssword@host/simple",
            "UV_INDEX_CORP_PASSWORD": "hunter22",
        }
    )
    assert found.redact("user p@ssword p%40ssword hunter22") == "user **** **** ****"


def test_uv_on_the_host_gets_the_same_settings_with_the_hosts_paths(tmp_path: Path):
    links, bundle = tmp_path / "links", tmp_path / "ca.pem"
    links.mkdir()
    bundle.touch()
    environ = {
        "PATH": "/p",
        "LANG": "C",
        "NETRC": "/secret",
        "AWS_SECRET_ACCESS_KEY": "x",
        "PIP_INDEX_URL": "https://me:hunter22@mirror.example/simple",
        "PIP_FIND_LINKS": f"{links} {tmp_path}/absent",
        "SSL_CERT_FILE": str(bundle),
        "https_proxy": "http://proxy:3128",
    }
    found = site(environ)
    assert found.host == {
        "PATH": "/p",
        "LANG": "C",
        "UV_DEFAULT_INDEX": "https://me:hunter22@mirror.example/simple",
        "UV_FIND_LINKS": str(links),
        "SSL_CERT_FILE": str(bundle),
        "https_proxy": "http://proxy:3128",
        "UV_NO_CONFIG": "1",
    }
    assert found.redact(str(found.host)).count("hunter22") == 0


def test_only_what_concerns_indexes_reaches_uv_on_the_host():
    env = (
        ("UV_INDEX", "https://corp/simple"),
        ("UV_HTTP_RETRIES", "9"),
        ("HTTPS_PROXY", "http://p"),
        ("UV_CACHE_DIR", "/x"),
        ("UV_COMPILE_BYTECODE", "1"),
        ("LD_PRELOAD", "/x"),
        ("CFLAGS", "-O3"),
    )
    found = dict(site({}, env=env).host)
    found.pop("SSL_CERT_FILE", None)  # this machine's own
    assert found == {
        "UV_INDEX": "https://corp/simple",
        "UV_HTTP_RETRIES": "9",
        "HTTPS_PROXY": "http://p",
        "UV_NO_CONFIG": "1",
    }


def test_a_home_directory_in_the_name_of_an_index_is_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "links").mkdir()
    found = site({"UV_DEFAULT_INDEX": "https://h", "UV_FIND_LINKS": "~/links"}).host
    assert found["UV_FIND_LINKS"] == f"{tmp_path}/links"


def test_no_index():
    assert site({"PIP_NO_INDEX": "1"}).no_index
    assert not site({}).no_index
