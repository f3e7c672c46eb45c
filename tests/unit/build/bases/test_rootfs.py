"""Merging layers in one pass gives what unpacking them one by one gives."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from globus_compute_apptainer.build.bases.rootfs import Merge, MergeError
from globus_compute_apptainer.build.bases.tarstream import TarError

Row = tuple[str, str, str]  # name, kind (file, dir, link, hard), text or target


def archive(rows: list[Row], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, kind, text in rows:
            entry = tarfile.TarInfo(name)
            if kind == "dir":
                entry.type = tarfile.DIRTYPE
            elif kind == "link":
                entry.type, entry.linkname = tarfile.SYMTYPE, text
            elif kind == "hard":
                entry.type, entry.linkname = tarfile.LNKTYPE, text
            data = text.encode() if kind == "file" else b""
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def merged(*layers: list[Row], form: int = tarfile.PAX_FORMAT) -> dict[str, Row]:
    out = io.BytesIO()
    merge = Merge(out.write)
    for rows in reversed(layers):
        data = archive(rows, form)
        merge.layer(data[at : at + 700] for at in range(0, len(data), 700))
    merge.end()
    found: dict[str, Row] = {}
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./").strip("/")
            assert name not in found, "written twice"
            if entry.isdir():
                found[name] = (name, "dir", "")
            elif entry.issym():
                found[name] = (name, "link", entry.linkname)
            else:
                file = tar.extractfile(entry)
                assert file is not None
                found[name] = (name, "file", file.read().decode())
    return found


def names(*layers: list[Row]) -> list[str]:
    return sorted(merged(*layers))


def file(name: str, text: str = "") -> Row:
    return (name, "file", text)


def folder(name: str) -> Row:
    return (name, "dir", "")


def test_the_upper_file_is_seen():
    assert merged([file("a", "old")], [file("a", "new")])["a"][2] == "new"


def test_a_whiteout_hides_what_is_below_and_nothing_else():
    lower = [folder("d"), file("d/a"), file("d/b"), folder("d/s"), file("d/s/x")]
    assert names(lower, [file("d/.wh.a"), file("d/.wh.s")]) == ["d", "d/b"]


def test_what_comes_after_a_whiteout_is_seen():
    lower = [folder("d"), file("d/a", "old")]
    upper = [file(".wh.d"), folder("d"), file("d/b")]
    assert names(lower, upper) == ["d", "d/b"]
    assert names(lower, [file(".wh.d")], [folder("d"), file("d/b")]) == ["d", "d/b"]


def test_an_opaque_directory_keeps_only_its_own():
    lower = [folder("d"), file("d/a"), folder("d/s"), file("d/s/x")]
    upper = [folder("d"), file("d/.wh..wh..opq"), file("d/n")]
    assert names(lower, upper) == ["d", "d/n"]


def test_other_kinds_of_one_name_replace_each_other():
    lower = [folder("d"), file("d/a")]
    assert names(lower, [file("d")]) == ["d"]
    assert names(lower, [file("d")], [folder("d")]) == ["d"]
    assert merged([("d", "link", "x")], [folder("d"), file("d/a")])["d"][1] == "dir"


def test_hard_links_within_a_layer_stay():
    rows = [file("a", "text"), ("b", "hard", "a")]
    assert merged(rows)["b"][2] == "text"


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param([[("l", "link", "d"), file("l/x")]], id="through a link"),
        pytest.param([[("l", "link", "d")], [file("l/x")]], id="of a lower layer"),
        pytest.param([[file("a")], [("b", "hard", "a")]], id="link to a lower layer"),
        pytest.param(
            [[file("a"), ("b", "hard", "a")], [file("a", "new")]], id="half a pair"
        ),
        pytest.param([[file("a", "1"), file("a", "2")]], id="twice"),
    ],
)
def test_what_one_pass_cannot_decide_is_refused(layers):
    with pytest.raises(MergeError):
        merged(*layers)


@pytest.mark.parametrize("name", ["../a", "a/../../b"])
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(TarError):
        merged([file(name)])


@pytest.mark.parametrize(
    "form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]
)
def test_names_in_every_form(form):
    rows = [folder("./d/"), file("./d/" + "n" * 99, "x"), file("/e", "y")]
    if form != tarfile.USTAR_FORMAT:
        rows += [file("l" * 300, "z"), file("ü" * 120), ("s", "link", "t" * 200)]
        rows += [("h", "hard", "l" * 300)]
    found = merged(rows, form=form)
    assert sorted(found) == sorted(row[0].strip("./") for row in rows)


def test_an_archive_cut_short_is_refused():
    data = archive([file("a", "x" * 2000)])
    for length in (100, 700, 1500):
        with pytest.raises(TarError):
            Merge(lambda _: None).layer([data[:length]])


def test_what_is_added_lies_above_before_and_below_after():
    out = io.BytesIO()
    merge = Merge(out.write)
    merge.add(b"own/a", archive([file("own/a", "ours")])[:1024], directory=False)
    merge.layer([archive([file("own/a", "theirs"), ("etc", "link", "x")])])
    for name in ("own/a", "new", "etc/hosts"):
        merge.add(name.encode(), archive([file(name, "late")])[:1024], directory=False)
    merge.end()
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        found = {e.name: tar.extractfile(e) for e in tar if e.isreg()}
    assert {n: f.read() for n, f in found.items()} == {"own/a": b"ours", "new": b"late"}


PARTS = st.sampled_from(["a", "b", "c"])
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@st.composite
def layer(draw: st.DrawFn) -> list[Row]:
    """Like a tool that compares file systems: parents are named, nothing twice."""
    rows: dict[str, Row] = {}
    for name in draw(st.lists(NAMES, max_size=6)):
        parts = name.split("/")
        parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
        if any(p in rows and rows[p][1] != "dir" for p in parents) or name in rows:
            continue
        for parent in parents:
            rows.setdefault(parent, folder(parent))
        kind = draw(st.sampled_from(["file", "dir", "wh", "opq"]))
        if kind == "wh" and draw(st.booleans()):
            path = "/".join([*parts[:-1], f".wh.{parts[-1]}"])
            rows[path] = file(path)
        elif kind == "opq":
            rows[name] = folder(name)
            rows[f"{name}/.wh..wh..opq"] = file(f"{name}/.wh..wh..opq")
        else:
            text = draw(st.sampled_from("xyz"))
            rows[name] = folder(name) if kind == "dir" else file(name, text)
    return list(rows.values())


def remove(tree: dict[str, Row], name: str) -> None:
    for path in [p for p in tree if p == name or p.startswith(f"{name}/")]:
        del tree[path]


def white_out(tree: dict[str, Row], name: str) -> None:
    parent, _, last = name.rpartition("/")
    if last == ".wh..wh..opq":
        for path in [p for p in tree if p.startswith(f"{parent}/")]:
            del tree[path]
    elif last.startswith(".wh."):
        remove(tree, f"{parent}/{last[4:]}" if parent else last[4:])


def unpacked(*layers: list[Row]) -> dict[str, Row]:
    """The plain way: the lowest first, each changing what is there."""
    tree: dict[str, Row] = {}
    for rows in layers:
        for name, _, _ in rows:
            white_out(tree, name)
        for name, kind, text in rows:
            if name.rpartition("/")[2].startswith(".wh."):
                continue
            if name in tree and not (tree[name][1] == kind == "dir"):
                remove(tree, name)
            tree[name] = (name, kind, text)
    return tree


@settings(max_examples=300, deadline=None)
@given(st.lists(layer(), min_size=1, max_size=4))
def test_as_if_unpacked_one_by_one(layers):
    assert merged(*layers) == unpacked(*layers)
