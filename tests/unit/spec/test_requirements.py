"""PEP 508 requirements: one normal form, and what is refused."""

import pytest
from packaging.requirements import Requirement

from globus_compute_apptainer.spec.refusal import Refusal
from globus_compute_apptainer.spec.requirements import requirement


@pytest.mark.parametrize(
    ("entry", "normal"),
    [
        ("pandas", "pandas"),
        ("Pandas", "pandas"),
        ("Foo__Bar.baz", "foo-bar-baz"),
        ("pandas >= 2 , < 3", "pandas<3,>=2"),
        ("pandas (>=2)", "pandas>=2"),
        ("a==1,==1", "a==1"),
        ("a==1.0RC1", "a==1.0rc1"),
        ("a===Weird_1", "a===Weird_1"),
        ("a==1.*", "a==1.*"),
        ("torch==2.3.0+cu121", "torch==2.3.0+cu121"),
        ("a[Z_z,y, y]", "a[y,z-z]"),
        ("a[]", "a"),
        ("a;python_version<'3.9'", 'a ; python_version < "3.9"'),
        (
            "a ; (sys_platform=='linux' or os.name=='nt') and os_name!='ex'",
            'a ; (sys_platform == "linux" or os_name == "nt") and os_name != "ex"',
        ),
        ("a; os_name!='extra'", 'a ; os_name != "extra"'),
        ("a@https://h/f.whl", "a @ https://h/f.whl"),
        ("A @ HTTPS://Host:80/F.whl#sha256=ab", "a @ https://host:80/F.whl#sha256=ab"),
        (
            "a @ https://h/x@v1.zip?q=1&b=%20 ; os_name=='posix'",
            'a @ https://h/x@v1.zip?q=1&b=%20 ; os_name == "posix"',
        ),
    ],
)
def test_normal_form(entry, normal):
    assert requirement(entry) == normal
    assert requirement(normal) == normal
    assert Requirement(normal).name == Requirement(entry).name.lower().replace(
        "__", "-"
    ).replace("_", "-").replace(".", "-")


@pytest.mark.parametrize(
    "option",
    [
        "-r other.txt",
        "-rother.txt",
        "--requirement=x",
        "-c x",
        "-e .",
        "--editable .",
        "-i https://h",
        "--index-url https://h",
        "--extra-index-url=https://h",
        "-f /x",
        "--find-links x",
        "--trusted-host x",
        "--pre",
        "--no-binary :all:",
        "a==1 --hash=sha256:abc",
        "a --config-settings x=y",
    ],
)
def test_options_are_refused_by_name(option):
    with pytest.raises(Refusal, match="has the option -") as caught:
        requirement(option)
    assert caught.value.hint


@pytest.mark.parametrize(
    "entry",
    [
        "-",
        "--",
        "- a",
        "./x",
        "../x",
        "/x/y",
        "~/x",
        "requirements.txt",
        "pkg-1.0-py3-none-any.whl",
        "x.tar.gz",
        "pyproject.toml",
        "a b",
        "a=1",
        "a==",
        "a>=1>=2",
        "a\nb",
        "a\r",
        "a\x00",
        "a;os_name=='\\n'",
        "a;os_name=='x\ny'",
        "a;os_name=='x\"y'",
        "a;os_name=='x\"y\"z'",
        'a;os_name=="x\'y"',
        "a;os_name=='x # y'",
        "a;nonsense=='1'",
        "a;extra=='x'",
        "a;os_name=='posix' and 'x' in extras",
        "a;" + "(" * 300 + "os_name=='x'" + ")" * 300,
        "a===1;rm",
        "a===1'",
        "a===-x",
        "a===$(id)",
        "é",
        "a٣",
        "a" * 2000,
        "https://h/f.whl",
        "git+https://h/x",
        "a @ git+https://h/x",
        "a @ git+ssh://git@h/x",
        "a @ ssh://h/x",
        "a @ file:///x",
        "a @ ftp://h/x",
        "a @ /x/y.whl",
        "a @ ./y.whl",
        "a @ https://",
        "a @ https:///x",
        "a @ https://h",
        "a @ https://h/",
        "a @ https://u:p@h/x",
        "a @ https://token@h/x",
        "a @ https://h\\@evil/x",
        "a @ https://h/${HOME}",
        "a @ https://h/x;y",
        "a @ https://h/x'y",
        'a @ https://h/x"y',
        "a @ https://h/x y",
        "a @ https://[::1]/x",
        "a @ https://-h/x",
        "a @ https://h:p/x",
        "a @ javascript:x",
    ],
)
def test_refused(entry):
    with pytest.raises(Refusal):
        requirement(entry)


@pytest.mark.parametrize(
    ("entry", "hint"),
    [
        ("a=1", "=="),
        ("a b", "one requirement per entry or line"),
        ("git+https://h/x", "ARCHIVE"),
        ("https://h/x.whl", "NAME @"),
        ("requirements.txt", "what the file holds"),
        ("a @ https://u:p@h/x", "administrator"),
        ("-r x", "contents of that file"),
        ("--index-url x", "administrator"),
    ],
)
def test_hints(entry, hint):
    with pytest.raises(Refusal) as caught:
        requirement(entry)
    assert hint in caught.value.hint


def test_reasons_are_one_line():
    with pytest.raises(Refusal) as caught:
        requirement("a b c")
    assert "\n" not in caught.value.reason
