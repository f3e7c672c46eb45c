"""payload_url, files, build_env, refresh."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from globus_compute_apptainer.errors import PolicyError, SpecError
from globus_compute_apptainer.spec import sources
from globus_compute_apptainer.spec.model import RunSpec, parse
from globus_compute_apptainer.spec.policy import Policy, check

CONTEXT = {"default_base": "docker://python:{python}-slim", "python": "3.11"}
SHA = "8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254"


def image(**spec):
    return parse(spec).image_spec(**CONTEXT)


def error(**spec):
    with pytest.raises(SpecError) as caught:
        parse(spec)
    return caught.value


class TestPayloadUrl:
    @pytest.mark.parametrize(
        "written, normal",
        [
            ("https://h/x.zip", "https://h/x.zip"),
            (" HTTPS://H.Example:443//a/./x.zip ", "https://h.example/a/x.zip"),
            ("http://h:80/x.zip", "http://h/x.zip"),
            ("http://h:8080/x.zip?a=b&c", "http://h:8080/x.zip?a=b&c"),
            ("https://h/%c3%a4.zip", "https://h/%C3%A4.zip"),
            (f"https://h/x#sha256={SHA.upper()}", f"https://h/x#sha256={SHA}"),
            ("https://h/x.git", "git+https://h/x.git"),
            ("https://h/x.git/#v1", "git+https://h/x.git#v1"),
            ("git+https://h/x#feature/y", "git+https://h/x#feature/y"),
            ("GIT+https://h/x#", "git+https://h/x"),
            ("git+http://h/~me/x", "git+http://h/~me/x"),
        ],
    )
    def test_normal_form(self, written, normal):
        assert image(payload_url=written).payload == normal
        assert image(payload_url=normal).payload == normal

    @pytest.mark.parametrize(
        "written",
        [
            "",
            "x",
            "/etc/passwd",
            "file:///etc/passwd",
            "git+file:///x",
            "ssh://h/x",
            "git+ssh://git@h/x",
            "git@h:o/r.git",
            "ftp://h/x",
            "s3://b/x",
            "ext::sh",
            "https://u:p@h/x",
            "https://u@h/x",
            "git+https://token@h/x",
            "https:///x",
            "https://h",
            "https://h/",
            "https://h/../x",
            "https://h/a/%2E%2E/x",
            "https://h/a%2fb",
            "https://h/%zz",
            "https://h/a b",
            "https://h/ä",
            "https://ä/x",
            "https://h/x#main",
            "https://h/x#sha256=00",
            "git+https://h/x?y#z",
            "git+https://h/x@main",
            "git+https://h/x#-x",
            "git+https://h/x#a..b",
            "git+https://h/x#a@{1}",
            "git+https://h/x#a:b",
            "git+https://h/x#a b",
            "git+https://h/x#refs/heads/x.lock",
            "git+https://h/x#a/",
            "https://[::1]/x",
            "https://h/x\ny",
            "https://h\\@evil/x",
            "https://" + "h" * 3000,
        ],
    )
    def test_what_is_refused(self, written):
        found = error(payload_url=written)
        assert found.field == "payload_url"
        assert "u:p" not in str(found)
        assert "token" not in str(found)

    @pytest.mark.parametrize("value", [1, [], {}, ["https://h/x"], True])
    def test_other_types(self, value):
        assert error(payload_url=value).field == "payload_url"

    def test_a_misspelt_scheme_names_the_nearest(self):
        assert error(payload_url="htps://h/x").nearest == "https://"


class TestFiles:
    @pytest.mark.parametrize(
        "name, text, fields",
        [
            (
                "requirements.txt",
                "Pandas>=2 # x\nnumpy",
                {"pip": ["numpy", "pandas >= 2"]},
            ),
            ("apt.txt", "git\ncurl", {"apt": ["curl", "git"]}),
            ("runtime.txt", "python-3.12", {"python": "3.12"}),
            (
                "environment.yml",
                "channels: [conda-forge]\ndependencies: [numpy, {pip: [six]}]",
                {
                    "conda": {"channels": ["conda-forge"], "dependencies": ["numpy"]},
                    "pip": "six",
                },
            ),
            (
                "environment.yml",
                "dependencies: [python=3.10]",
                {"conda": ["python=3.10"]},
            ),
            ("Pipfile", '[packages]\nsix = "==1.16.0"', {"pip": ["six==1.16.0"]}),
        ],
    )
    def test_what_other_fields_can_say_is_said_there(self, name, text, fields):
        assert image(files={name: text}).digest == image(**fields).digest

    def test_fields_and_files_add_up(self):
        both = image(
            pip=["a"], apt=["git"], files={"requirements.txt": "b", "apt.txt": "curl"}
        )
        assert (both.pip, both.apt) == (("a", "b"), ("curl", "git"))

    @pytest.mark.parametrize(
        "name", ["postBuild", "start", "install.R", "setup.py", "setup.cfg"]
    )
    def test_what_needs_a_tree_stays(self, name):
        made = image(files={name: "x\r\n", "requirements.txt": "six"})
        assert made.files == ((name, "x\r\n"),)
        assert made.pip == ("six",)

    @pytest.mark.parametrize(
        "name, text",
        [
            ("requirements.txt", f"six==1.16.0 --hash=sha256:{SHA}"),
            ("requirements.txt", "-e .[dev]"),
            ("environment.yml", "dependencies: [a, {pip: ['.[dev]']}]"),
            ("environment.yml", "dependencies: [a]"),
            ("Pipfile", '[packages]\nsix = "*"'),
        ],
    )
    def test_an_environment_that_says_more_than_fields_can_stays_whole(
        self, name, text
    ):
        files = {name: text, "setup.py": ""}
        made = image(files=files)
        assert dict(made.files) == files
        assert (made.pip, made.conda) == ((), None)

    def test_with_a_payload_all_stay_but_python_is_known(self):
        files = {"requirements.txt": "-r their.txt", "runtime.txt": "python-3.12"}
        made = image(payload_url="https://h/x", files=files)
        assert dict(made.files) == files
        assert (made.pip, made.python, made.base_image) == (
            (),
            "3.12",
            "python:3.12-slim",
        )
        ignored = image(payload_url="https://h/x", files={**files, "Pipfile": ""})
        assert ignored.python is None or ignored.python == "3.11"

    def test_order_does_not_matter(self):
        one = image(files={"start": "a", "postBuild": "b"})
        assert one.digest == image(files={"postBuild": "b", "start": "a"}).digest

    @pytest.mark.parametrize(
        "name, nearest",
        [
            ("requirement.txt", "requirements.txt"),
            ("Requirements.txt", "requirements.txt"),
            ("postbuild", "postBuild"),
            ("pipfile", "Pipfile"),
            ("binder/apt.txt", "apt.txt"),
            ("./setup.py", "setup.py"),
            ("/etc/passwd", ""),
            ("../../x", ""),
            ("a\nb", ""),
            ("", ""),
        ],
    )
    def test_other_names_are_refused(self, name, nearest):
        found = error(files={name: "x"})
        assert (found.field, found.nearest) == ("files", nearest)

    @pytest.mark.parametrize(
        "name", ["Dockerfile", "Project.toml", "default.nix", "DESCRIPTION"]
    )
    def test_files_that_no_image_is_made_from_say_so(self, name):
        assert "because" in error(files={name: "x"}).message

    @pytest.mark.parametrize(
        "value", [["x"], "requirements.txt", {"apt.txt": 1}, {"start": "\0"}]
    )
    def test_other_types(self, value):
        assert error(files=value).field.startswith("files")

    def test_python_must_agree_everywhere(self):
        files = {"runtime.txt": "python-3.12"}
        assert error(python="3.11", files=files).field == "files"
        environment = {"environment.yml": "dependencies: [python=3.12]"}
        assert error(python="3.11", files=environment).field == "files"
        assert image(python="3.12", files=files).python == "3.12"

    def test_notes_reach_the_user(self):
        spec = parse(
            {"files": {"environment.yml": "", "requirements.txt": "six"}, "pip": "a"}
        )
        assert any("requirements.txt is not read" in note for note in spec.notes)

    def test_nothing_but_empty_files_asks_for_nothing(self):
        assert error(files={"requirements.txt": ""}).code == "spec-empty"


class TestBuildEnv:
    def test_sorted_and_part_of_the_identity(self):
        one = image(build_env={"B": "1", "A": "$x"})
        assert one.build_env == (("A", "$x"), ("B", "1"))
        assert one.digest != image(build_env={"B": "1"}).digest

    @pytest.mark.parametrize(
        "name",
        [
            "PIP_INDEX_URL",
            "UV_INDEX",
            "https_proxy",
            "NO_PROXY",
            "SSL_CERT_FILE",
            "APPTAINER_BIND",
            "GIT_CONFIG_COUNT",
            "HOME",
            "A-B",
            "1A",
            "",
            "CONDA_CHANNELS",
        ],
    )
    def test_names_that_are_not_the_users(self, name):
        assert error(build_env={name: "secret"}).field == "build_env"

    @pytest.mark.parametrize("value", ["a\nb", "\r", "\0", 1])
    def test_values_that_cannot_be(self, value):
        found = error(build_env={"A": value})
        assert found.field == "build_env.A"
        assert found.value == ""


class TestRefresh:
    @pytest.mark.parametrize(
        "written, seconds",
        [("7d", 604800), ("12 h", 43200), ("30m", 1800), ("2w", 1209600)],
    )
    def test_in_seconds(self, written, seconds):
        assert parse({"refresh": written}).refresh == seconds

    def test_not_part_of_the_identity(self):
        assert image(pip="a", refresh="7d").digest == image(pip="a").digest

    @pytest.mark.parametrize(
        "value", ["7", "7x", "0d", "-1d", "1.5d", "d", "", 7, "٣d", ["7d"]]
    )
    def test_what_is_refused(self, value):
        assert error(refresh=value).field == "refresh"


class TestPolicy:
    def allowed(self, spec, **policy):
        check(image(**spec), RunSpec(), Policy(**policy))

    @pytest.mark.parametrize("url", ["https://h/x", "git+https://h/x"])
    def test_tls_is_allowed_and_the_rest_is_the_admins(self, url):
        self.allowed({"payload_url": url})
        plain = url.replace("https", "http")
        with pytest.raises(PolicyError) as caught:
            self.allowed({"payload_url": plain})
        assert caught.value.field == "payload_url"
        self.allowed({"payload_url": plain}, payload_urls=(f"{plain}*",))

    def test_globs_are_on_the_normal_form_without_ref(self):
        glob = ("git+https://github.com/org/*",)
        self.allowed(
            {"payload_url": "https://GITHUB.com/org/x.git#main"}, payload_urls=glob
        )
        for url in ("https://github.com/org/x.zip", "https://github.com/organ/x.git"):
            with pytest.raises(PolicyError):
                self.allowed({"payload_url": url}, payload_urls=glob)

    @pytest.mark.parametrize("name", ["postBuild", "install.R"])
    def test_scripts_are_shell_lines(self, name):
        with pytest.raises(PolicyError) as caught:
            self.allowed({"files": {name: "x"}})
        assert caught.value.field == f"files.{name}"
        self.allowed({"files": {name: "x"}}, allow_post=True)
        self.allowed({"files": {"start": "x", "setup.py": "x"}})

    def test_what_files_come_to_is_checked_like_the_fields(self):
        with pytest.raises(PolicyError):
            self.allowed({"files": {"apt.txt": "git"}}, allow_apt=False)


NAMES = st.sampled_from([*sources.FILES, "Dockerfile", "x"])
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["six", "-e .", "dependencies: [a]", "[packages]\na='*'", "python-3.11", "[" * 2000]
)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "files": st.dictionaries(NAMES, TEXTS, max_size=5),
        "payload_url": st.text(max_size=20)
        | st.builds(
            "{}://{}{}".format,
            st.sampled_from(["https", "git+https", "http", "x"]),
            st.sampled_from(["h", "H:1", "u@h", ""]),
            st.text("/a.%2e#@?:~ é", max_size=12),
        ),
        "build_env": st.dictionaries(
            st.text(max_size=5), st.text(max_size=5), max_size=2
        ),
        "refresh": st.text("0123456789dhmw ", max_size=5),
    },
)


@settings(deadline=None, max_examples=300)
@given(SPECS)
def test_nothing_but_a_spec_error_is_raised_and_normal_forms_stay(spec):
    try:
        parsed = parse(spec)
    except SpecError:
        return
    if parsed.payload:
        assert sources.payload_url("x", parsed.payload) == parsed.payload
    made = parsed.image_spec(**CONTEXT)
    assert made.canonical().isascii()
