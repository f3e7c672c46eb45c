"""Wheels that stand for what a base has."""

from __future__ import annotations

import io
import zipfile
from email.parser import Parser

from hypothesis import given
from hypothesis import strategies as st

from globus_compute_apptainer.build.inventory import Package
from globus_compute_apptainer.build.python import standins


def metadata(content: bytes):
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith("/METADATA")]
        return Parser().parsestr(wheel.read(name).decode())


def test_a_stand_in_has_a_name_a_version_and_no_dependencies():
    package = Package("my-torch", "2.9.0a0+nv.1", ("numpy<2", "filelock"))
    ((name, content),) = standins.stand_ins([package]).items()
    assert name == "my_torch-2.9.0a0+nv.1-py30-none-any.whl"
    found = metadata(content)
    assert (found["Name"], found["Version"]) == ("my-torch", "2.9.0a0+nv.1")
    assert found.get_all("Requires-Dist") is None


def test_its_extras_keep_their_dependencies():
    needs = ("six", 'rich>=13 ; extra == "cli"', 'evil @ https://h/x ; extra == "cli"')
    ((_, content),) = standins.stand_ins([Package("a", "1.0", needs)]).items()
    found = metadata(content)
    assert found.get_all("Provides-Extra") == ["cli"]
    assert found.get_all("Requires-Dist") == ['rich>=13 ; extra == "cli"']


def test_the_same_package_gives_the_same_bytes():
    package = Package("a", "1.0")
    assert standins.stand_ins([package]) == standins.stand_ins([package])


def test_preferences_are_pins():
    have = [Package("a", "1.0"), Package("b", "2.0+x")]
    assert standins.preferences(have) == "a==1.0\nb==2.0+x\n"


@given(
    st.builds(
        Package,
        st.text(max_size=12),
        st.one_of(st.text(max_size=8), st.just("1.0")),
        st.lists(st.text(max_size=30), max_size=3).map(tuple),
    )
)
def test_a_base_may_say_anything(package):
    for name, content in standins.stand_ins([package]).items():
        assert "/" not in name
        assert "\n" not in name
        assert metadata(content)["Name"] == package.name
    assert standins.preferences([package]).count("\n") <= 1
