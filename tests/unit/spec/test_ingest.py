"""Directories read as repo2docker reads them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.conda import Conda
from globus_compute_apptainer.spec.foreign import FOREIGN
from globus_compute_apptainer.spec.ingest import FOLDERS, ingest

SHA = "a" * 64
PROJECT = '[project]\nname = "x"\n[build-system]\nrequires = []\n'


def error(files, **options):
    with pytest.raises(SpecError) as caught:
        ingest(files, **options)
    return caught.value


def test_a_directory_without_any_of_the_files_asks_for_nothing():
    found = ingest({"README.md": "x", "sub/requirements.txt": "six"})
    assert (found.pip, found.apt, found.conda, found.python) == ((), (), None, None)
    assert not (
        found.post_build or found.start or found.install_project or found.install_steps
    )
    assert found.read == ()


class TestWhichFileWins:
    def test_environment_yml_before_pipfile_before_requirements(self):
        files = {
            "environment.yml": "dependencies: [a]",
            "Pipfile.lock": "{}",
            "Pipfile": '[packages]\nb = "*"',
            "requirements.txt": "c",
            "setup.py": "",
        }
        found = ingest(files)
        assert (found.conda, found.pip) == (Conda(("a",)), ())
        assert found.projects == ()
        del files["environment.yml"], files["Pipfile.lock"]
        found = ingest(files)
        assert (found.pip, found.projects) == (("b",), ())
        del files["Pipfile"]
        assert (ingest(files).pip, ingest(files).projects) == (("c",), (".",))

    def test_what_was_not_read_is_said(self):
        found = ingest(
            {
                "environment.yml": "",
                "requirements.txt": "a",
                "runtime.txt": "python-3.11",
            }
        )
        assert {note.partition(" ")[0] for note in found.notes} == {
            "requirements.txt",
            "runtime.txt",
        }

    def test_environment_yaml_is_the_same_but_comes_second(self):
        assert ingest({"environment.yaml": "dependencies: [a]"}).conda == Conda(("a",))
        both = {
            "environment.yaml": "dependencies: [a]",
            "environment.yml": "dependencies: [b]",
        }
        assert ingest(both).conda == Conda(("b",))

    @pytest.mark.parametrize("folder", FOLDERS)
    def test_a_binder_directory_is_the_only_place(self, folder):
        found = ingest(
            {
                "requirements.txt": "root",
                "apt.txt": "root",
                "postBuild": "",
                "Dockerfile": "",
                "DESCRIPTION": "",
                "setup.py": "",
                "pyproject.toml": PROJECT,
                f"{folder}/requirements.txt": "inside",
                f"{folder}/start": "",
            }
        )
        assert (found.pip, found.apt, found.projects) == (("inside",), (), ())
        assert (found.post_build, found.start, found.folder) == (False, True, folder)

    def test_an_empty_binder_directory_counts_too(self):
        found = ingest({"requirements.txt": "a"}, ["requirements.txt", "binder"])
        assert found.pip == ()

    def test_two_binder_directories_are_one_too_many(self):
        found = error({"binder/apt.txt": "", ".binder/apt.txt": ""})
        assert "both" in found.message

    def test_a_file_called_binder_is_none(self):
        assert ingest({"binder": "x", "requirements.txt": "a"}).pip == ("a",)


class TestForeign:
    @pytest.mark.parametrize("name", FOREIGN)
    def test_no_image_is_made_from_it_and_the_error_says_what_to_do(self, name):
        found = error({name: "", "requirements.txt": "a"})
        assert found.field == name
        assert "because" in found.message
        assert found.hint

    @pytest.mark.parametrize("name", FOREIGN)
    def test_files_of_the_spec_override_it(self, name):
        found = ingest({name: "", "requirements.txt": "a"}, given=["requirements.txt"])
        assert found.pip == ("a",)
        assert any(name in note for note in found.notes)

    @pytest.mark.parametrize("text", ["r-2018-12-08", "r-4.3-2024-01-02", "r-4.3"])
    @pytest.mark.parametrize("files", [{}, {"environment.yml": ""}, {"Pipfile": ""}])
    def test_r_of_a_snapshot_is_refused(self, text, files):
        assert "R" in error({**files, "runtime.txt": text}).message

    @pytest.mark.parametrize("own", ["requirements.txt", "environment.yml"])
    def test_files_of_the_spec_override_r_too(self, own):
        found = ingest({"runtime.txt": "r-4.3-2024-01-02", own: ""}, given=[own])
        assert found.python is None
        assert any("runtime.txt" in note for note in found.notes)


class TestRequirements:
    def test_what_they_include_relative_to_themselves(self):
        files = {
            "binder/requirements.txt": "-r more/dev.txt\n-c ../limits.txt\na",
            "binder/more/dev.txt": "b\n--requirement=other.txt",
            "binder/more/other.txt": "c\n-r dev.txt",
            "limits.txt": "a<2\nz==1  # comment",
        }
        found = ingest(files)
        assert found.pip == ("a", "b", "c")
        assert found.constraints == ("a<2", "z==1")

    @pytest.mark.parametrize(
        "line, project",
        [
            ("-e .", "."),
            ("-e.", "."),
            (".", "."),
            ("--editable=.[Test,dev_x]", ".[dev-x,test]"),
            ("./sub", "./sub"),
            ("-e sub/", "./sub"),
            ("file:./sub", "./sub"),
            ("sub/x-1-py3-none-any.whl", "./sub/x-1-py3-none-any.whl"),
        ],
    )
    def test_local_projects_relative_to_the_root(self, line, project):
        files = {
            "setup.py": "",
            "sub/pyproject.toml": "",
            "sub/x-1-py3-none-any.whl": "",
            "requirements.txt": line,
        }
        found = ingest(files)
        assert project in found.projects
        assert sum(one.startswith(".[") or one == "." for one in found.projects) == 1
        inside = {**files, "binder/requirements.txt": line}
        assert ingest(inside).projects == (project,)

    @pytest.mark.parametrize(
        "line",
        [
            "-e ..",
            "-r ../x",
            "/tmp/x",
            "-e /tmp",
            "~/x",
            "./nothing",
            "-r http://h/x",
            "-r missing",
            "-e ./docs",
            "-i https://h/simple",
            "--pre",
            "${X}",
            "git+https://h/x",
            ". ; python_version > '3'",
            "--find-links .",
        ],
    )
    def test_what_leads_nowhere_or_elsewhere_is_refused(self, line):
        found = error({"requirements.txt": f"a\n{line}", "docs/x": ""})
        assert found.field == "requirements.txt[line 2]"

    def test_the_index_that_tools_write_by_themselves_means_nothing(self):
        assert ingest({"requirements.txt": "-i https://pypi.org/simple\na"}).pip == (
            "a",
        )

    def test_hashes_are_kept(self):
        text = f"a==1 \\\n --hash=sha256:{SHA} \\\n --hash=sha256:{'B' * 64}\n-e ."
        found = ingest({"requirements.txt": text, "setup.py": ""})
        assert found.pip == ("a==1",)
        assert found.hashes == (("a==1", (f"sha256:{SHA}", f"sha256:{'b' * 64}")),)

    @pytest.mark.parametrize(
        "text",
        [
            "a==1 --hash=md5:00",
            "a==1 --hash=sha256:00",
            f"a>=1 --hash=sha256:{SHA}",
            f"a --hash=sha256:{SHA}",
            f"a==1 --hash=sha256:{SHA}\nb==2",
        ],
    )
    def test_hashes_as_pip_has_them_or_not_at_all(self, text):
        assert error({"requirements.txt": text}).field.startswith("requirements.txt")


class TestPipfile:
    def test_packages_and_development_packages(self):
        text = (
            '[[source]]\nurl = "https://pypi.org/simple"\n[packages]\na = "*"\n'
            'b = {version = ">=1", extras = ["x"], sys_platform = "== \'linux\'"}\n'
            '[dev-packages]\nc = "==2"\n[requires]\npython_version = "3.12"\n'
        )
        found = ingest({"Pipfile": text, "runtime.txt": "python-3.10"})
        assert found.pip == ("a", 'b[x]>=1 ; sys_platform == "linux"', "c==2")
        assert found.python == "3.12"

    def test_the_lock_wins_but_its_python_may_be_in_the_pipfile(self):
        lock = {
            "_meta": {"sources": [{"url": "https://pypi.org/simple"}]},
            "default": {"a": {"version": "==1", "hashes": [f"sha256:{SHA}"]}},
            "develop": {
                "b": {
                    "version": "==2",
                    "markers": "python_version > '3'",
                    "hashes": [f"sha256:{SHA}"],
                }
            },
        }
        files = {
            "Pipfile.lock": json.dumps(lock),
            "Pipfile": '[requires]\npython_full_version = "3.11.4"',
        }
        found = ingest(files)
        assert found.pip == ("a==1", 'b==2 ; python_version > "3"')
        assert [name for name, _ in found.hashes] == list(found.pip)
        assert found.python == "3.11"

    def test_paths_relative_to_the_file(self):
        text = '[packages]\nx = {path = "..", editable = true}'
        files = {"binder/Pipfile": text, "setup.py": ""}
        assert ingest(files).projects == (".",)
        assert error({"Pipfile": '[packages]\nx = {path = "../.."}'})

    @pytest.mark.parametrize(
        "text",
        [
            "[[source]]\nurl = 'https://mirror.example/simple'",
            "[packages]\nx = {git = 'https://h/x', ref = 'a'}",
            "[packages]\nx = 1",
            "[packages]\nx = {version = 1}",
            "packages = 1",
            "[requires]\npython_version = '2.7'",
            "[requires]\npython_version = '2'",
            "[packages]\nx = {extras = 1}",
            "not toml",
        ],
    )
    def test_what_cannot_be_had_is_refused(self, text):
        assert error({"Pipfile": text}).field.startswith("Pipfile")


class TestConda:
    def test_nested_pip_may_do_what_requirements_may(self):
        files = {
            "binder/environment.yml": "channels: [conda-forge]\ndependencies:\n- a\n"
            "- python=3.10\n- pip\n- pip:\n  - -r more.txt\n  - -e ../\n  - six==1.0\n",
            "binder/more.txt": "b",
            "pyproject.toml": PROJECT,
        }
        found = ingest(files)
        assert found.pip == ("b", "six==1.0")
        assert found.projects == (".",)
        assert found.python == "3.10"
        assert found.conda is not None
        assert found.conda.channels == ("conda-forge",)

    @pytest.mark.parametrize("text", ["", "# nothing", "name: x"])
    def test_an_empty_one_still_is_the_environment(self, text):
        found = ingest({"environment.yml": text, "requirements.txt": "a"})
        assert (found.conda, found.pip) == (None, ())

    @pytest.mark.parametrize(
        "text",
        [
            "- a",
            "a: [",
            "dependencies: [{pip: [1, {}]}]",
            "dependencies: [{pip: ['-r x']}]",
        ],
    )
    def test_a_broken_one_is_named(self, text):
        assert error({"environment.yml": text}).field.startswith("environment.yml")


class TestPython:
    @pytest.mark.parametrize(
        "text, python",
        [("python-3.11", "3.11"), ("python-3.11.5\n", "3.11"), ("python-3", None)],
    )
    def test_runtime(self, text, python):
        assert ingest({"runtime.txt": text}).python == python

    @pytest.mark.parametrize(
        "text",
        [
            "python",
            "python-",
            "python-x",
            "python-2.7",
            "3.11",
            "julia-1.6",
            "",
            "a-b-c",
        ],
    )
    def test_a_runtime_that_is_none(self, text):
        assert error({"runtime.txt": text}).field == "runtime.txt"

    @pytest.mark.parametrize(
        "pyproject, project",
        [
            (PROJECT, (".",)),
            ('[project]\nname = "x"', ()),
            ("[build-system]\nrequires = []\n[tool.poetry]\nname = 'x'", ()),
            ("[tool.ruff]", ()),
        ],
    )
    def test_what_counts_as_a_project(self, pyproject, project):
        assert ingest({"pyproject.toml": pyproject}).projects == project

    def test_setup_cfg_alone_is_no_project(self):
        assert ingest({"setup.cfg": ""}).projects == ()
        assert ingest({"setup.py": ""}).projects == (".",)

    def test_runtime_must_be_what_the_project_allows(self):
        files = {"pyproject.toml": '[project]\nrequires-python = ">=3.11.4,<3.13"'}
        for good in ("3.11", "3.12"):
            assert ingest({**files, "runtime.txt": f"python-{good}"}).python == good
        for bad in ("3.10", "3.13"):
            assert (
                error({**files, "runtime.txt": f"python-{bad}"}).field
                == "pyproject.toml"
            )
        files = {"pyproject.toml": '[project]\nrequires-python = "nonsense"'}
        assert error({**files, "runtime.txt": "python-3.11"})


def test_packages_of_r_are_installed_from_where_their_list_is():
    found = ingest({".binder/postBuild": "", ".binder/install.R": ""})
    assert found.post_build
    before, install, after = found.install_steps
    assert (before, after) == ("cd /payload", "cd /")
    assert install.startswith("Rscript ")
    assert install.endswith(" .binder/install.R")


def test_apt_beside_every_environment():
    for name in ("environment.yml", "Pipfile", "requirements.txt", "README"):
        assert ingest({name: "", "apt.txt": "git # x\n\ncurl vim"}).apt == (
            "curl",
            "git",
            "vim",
        )
    assert error({"apt.txt": "vim\n-y"}).field == "apt.txt[line 2]"


def test_errors_name_where_the_files_stand():
    assert error({"apt.txt": "-y"}, where="files.").field == "files.apt.txt[line 1]"


NAMES = st.sampled_from(
    "environment.yml environment.yaml Pipfile Pipfile.lock requirements.txt apt.txt"
    " runtime.txt pyproject.toml setup.py postBuild start install.R binder/apt.txt"
    " .binder/requirements.txt binder/requirements.txt other.txt sub/setup.py".split()
)
PIECES = st.sampled_from(
    [
        "[packages]",
        "[project]",
        "requires-python = '>3'",
        "x = '*'",
        "dependencies:",
        "- a",
        "- pip:",
        "  - -e .",
        "-r other.txt",
        "-c requirements.txt",
        "-e ./sub",
        ".",
        "{",
        "}",
        '{"default": {"a": {"version": "==1"}}}',
        "python-3.11",
        "r-2024-01-01",
        "a==1",
        "--hash=sha256:" + SHA,
        "a[b]>1;c",
        "[" * 3000,
        "\\",
        "\x00",
        "é",
        "{" * 500,
    ]
)
TEXTS = st.lists(PIECES | st.text(max_size=10), max_size=6).map("\n".join)


@settings(deadline=None, max_examples=400)
@given(st.dictionaries(NAMES, TEXTS, max_size=6))
def test_nothing_but_a_spec_error_is_ever_raised(files):
    try:
        found = ingest(files)
    except SpecError as refused:
        assert str(refused)
    else:
        assert found == ingest(files)
        hash(found)
