"""What holds for every spec, as far as Hypothesis can find."""

import copy
import json
import random
import re
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.model import RunSpec, parse
from globus_compute_apptainer.spec.names import ALIASES, FIELDS, IGNORED

CONTEXT = {"default_base": "docker://python:{python}-slim", "python": "3.11"}

EXAMPLES = settings(deadline=None, max_examples=100)


def every(*strategies):
    """``@given``, with the settings of this file and of no other."""
    return lambda test: EXAMPLES(given(*strategies)(test))


# --- arbitrary input -----------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.text(st.characters(), max_size=5)  # with surrogates
    | st.sampled_from(["\n", "-r x", "a\0", "$(id)", "'", '"', "\ud800", "x" * 9999])
)
objects = scalars | st.binary(max_size=5) | st.sets(st.integers(), max_size=2)
trees = st.recursive(
    objects,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)
names = st.sampled_from([*FIELDS, *ALIASES, *IGNORED])
anything = (
    trees
    | st.dictionaries(names | st.text(max_size=8), trees, max_size=5)
    | st.from_type(type).flatmap(st.just)
    | st.from_type(object)
)

# --- texts close to what the grammars accept -----------------------------------------

near_text = st.text("abzAZ019.-_+=:/@[],;<>!~ '\"\\#$(){}%\n\r\t\x00é", max_size=30)
seeds = st.sampled_from(
    [
        "numpy",
        "pandas>=2,<3",
        "a[b,c]==1.0; python_version<'3.9'",
        "x @ https://h.org/f.whl#sha256=ab",
        "-r",
        "--hash=",
        "git",
        "libc6:amd64=1:2-3",
        "python:3.11-slim",
        "docker://127.0.0.1:5000/python",
        "/i/x.sif",
        "oci:/i:tag",
        "oras://h.org/x@sha256:" + "0" * 64,
    ]
)


@st.composite
def mutated(draw):
    """A seed with a little of something else put into it, or only that."""
    seed, extra = draw(seeds), draw(near_text)
    where = draw(st.integers(0, len(seed)))
    return draw(st.sampled_from([seed[:where] + extra + seed[where:], seed, extra]))


# --- valid specs ---------------------------------------------------------------------

word = st.text(string.ascii_lowercase + string.digits, min_size=2, max_size=6).filter(
    lambda w: w[0].isalpha()
)
requirement = st.builds(
    "{}{}{}".format,
    word,
    st.sampled_from(["", "[x]", "[x,y]"]),
    st.sampled_from(["", "==1.0", ">=2,<3", "~=1.4", "!=2.*"]),
)
image_fields = {
    "base_image": st.builds("{}/{}:{}".format, word, word, word),
    "python": st.sampled_from(["3.9", "3.11", "3.13"]),
    "pip": st.lists(requirement, min_size=1, max_size=5),
    "apt": st.lists(word, min_size=1, max_size=5),
    "post": st.lists(st.builds("echo {}".format, word), min_size=1, max_size=3),
}
run_fields = {
    "env": st.dictionaries(word.map(str.upper), st.text(max_size=9), min_size=1).map(
        lambda env: {k: v.replace("\0", "") for k, v in env.items() if k != "HOME"}
    ),
    "gpu": st.sampled_from(["nvidia", "rocm"]),
    "binds": st.lists(word.map("/data/{}".format), min_size=1, max_size=3),
}
people_fields = {
    "name": word,
    "description": word,
    "labels": st.dictionaries(word, word),
    "container_id": word,
}
images = st.fixed_dictionaries({}, optional=image_fields).filter(bool)
runs = st.fixed_dictionaries({}, optional=run_fields)
people = st.fixed_dictionaries({}, optional=people_fields)


def digest(raw):
    return parse(raw).image_spec(**CONTEXT).digest


# --- parse is total ------------------------------------------------------------------


@every(anything)
@example({"pip": ["a;" + "(" * 900 + "os_name=='a'" + ")" * 900]})
@example({"pip": "\\\n" * 20000})
@example({"x": 10**5000})
@example({10**5000: 1})
def test_parse_raises_nothing_but_spec_errors(raw):
    try:
        spec = parse(raw)
    except SpecError as error:
        text = error.render()
        assert len(text) < 2000
        assert text.isprintable() or "\n" in text
        assert error.code.startswith("spec-")
    else:
        spec.image_spec(**CONTEXT).canonical()


@every(names, mutated() | trees | st.lists(mutated(), max_size=3))
def test_every_field_survives_every_value(name, value):
    raw = {name: value}
    before = copy.deepcopy(raw)
    try:
        parse(raw)
    except SpecError as error:
        assert error.code == "spec-too-large" or error.message
    assert raw.keys() == before.keys()


# --- nothing dangerous is accepted ---------------------------------------------------


@every(st.lists(mutated(), min_size=1, max_size=3) | mutated())
def test_accepted_requirements_are_one_harmless_line_each(value):
    try:
        accepted = parse({"pip": value, "gpu": "rocm"}).pip
    except SpecError:
        return
    for entry in accepted:
        assert re.fullmatch(r"[a-z0-9][A-Za-z0-9 ._+*!<>=~(),;:@/?#&%\"\[\]-]*", entry)
        assert not re.search(r"(^|\s)-", entry.partition(" ; ")[0])
        assert " #" not in entry
        assert entry.count('"') % 2 == 0
        assert '"' not in entry.partition(" ; ")[0]
        assert parse({"pip": [entry]}).pip == (entry,)


@every(st.lists(mutated(), min_size=1, max_size=3) | mutated())
def test_accepted_debian_names_are_never_options(value):
    try:
        accepted = parse({"apt": value, "gpu": "rocm"}).apt
    except SpecError:
        return
    for entry in accepted:
        assert re.fullmatch(r"[a-z0-9][A-Za-z0-9.+:=~-]*[A-Za-z0-9.+~]", entry)
        assert parse({"apt": [entry]}).apt == (entry,)


@every(mutated(), st.none() | st.sampled_from(["docker", "oci", "localimage", "oras"]))
def test_accepted_bases_are_one_harmless_word(value, stated):
    try:
        spec = parse({"base_image": value, "base_image_type": stated})
    except SpecError:
        return
    assert re.fullmatch(r"[A-Za-z0-9/][A-Za-z0-9._@:/+=-]*", spec.base_image)
    assert ".." not in spec.base_image.split("/")
    again = {"base_image": f"{spec.agent}://{spec.base_image}"}
    assert parse(again).base_image == spec.base_image
    assert parse(again).agent == spec.agent


@every(st.lists(st.sampled_from(["/a", "/a:/b", "/a:/proc"]) | mutated(), max_size=3))
def test_accepted_binds_have_three_plain_parts(value):
    try:
        accepted = parse({"binds": value, "gpu": "rocm"}).run_spec.binds
    except SpecError:
        return
    for entry in accepted:
        source, target, mode = entry.split(":")
        assert source.startswith("/")
        assert target.startswith("/")
        assert target != "/"
        assert mode in ("ro", "rw")
        assert entry.isprintable()
        assert not set(entry) & set(",\"'\\")


@every(word, st.sampled_from(["-", "--", " -", "\t--", "\n-"]))
def test_options_are_never_accepted(name, dashes):
    for field in ("pip", "apt"):
        for value in ([dashes + name], dashes + name):
            with pytest.raises(SpecError):
                parse({field: value})


# --- identity ------------------------------------------------------------------------


@every(images, st.randoms(use_true_random=False))
def test_spelling_does_not_change_the_digest(raw, rng: random.Random):
    other = copy.deepcopy(raw)
    for field in ("pip", "apt"):
        if field in other:
            entries = other[field] + rng.sample(other[field], 1)
            rng.shuffle(entries)
            other[field] = [f" {entry}\t" for entry in entries]
    if "pip" in other:
        respelt = [e.title().replace(",", " , ") for e in other["pip"]]
        other["pip"] = "# text\n\n" + "\n".join(e + "  # why" for e in respelt)
    if "post" in other:
        other["post"] = "\n".join(other["post"]) + "\n"
    if "base_image" in other:
        other["base_image"] = " docker://docker.io/" + other["base_image"]
    for alias, field in ALIASES.items():
        if field in other and rng.random() < 0.5:
            other[alias] = other.pop(field)
    fields = [*other.items(), ("env", None), ("conda", None)]
    rng.shuffle(fields)
    assert digest(dict(fields)) == digest(raw)


@every(images, runs, people)
def test_runs_and_names_never_change_the_digest(raw, run, person):
    assert digest({**raw, **run, **person}) == digest(raw)


@every(images, runs.filter(bool))
def test_every_part_of_a_run_is_part_of_the_run_identity(raw, run):
    assert parse(raw).run_spec == RunSpec()
    expected = any(run.values())
    assert (parse({**raw, **run}).run_spec != RunSpec()) == expected


@every(images, images)
def test_different_images_have_different_digests(one, two):
    first, second = (parse(raw).image_spec(**CONTEXT) for raw in (one, two))
    assert (first == second) == (first.digest == second.digest)
    assert (first == second) == (first.canonical() == second.canonical())


@every(images)
def test_canonical_bytes_are_canonical(raw):
    encoded = parse(raw).image_spec(**CONTEXT).canonical()
    tree = json.loads(encoded)
    again = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert encoded == again.encode()


@every(images)
def test_parsing_twice_is_parsing_once(raw):
    made = parse(raw).image_spec(**CONTEXT)
    tree = json.loads(made.canonical())
    del tree["format"]
    tree["base_image_type"] = tree.pop("agent")
    assert parse(tree).image_spec(**CONTEXT) == made
