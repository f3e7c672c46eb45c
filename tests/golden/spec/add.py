"""Write a new golden file from a spec on standard input; see README.md."""

import json
import sys
from pathlib import Path

from globus_compute_apptainer.errors import SpecError
from globus_compute_apptainer.spec.model import parse

CONTEXT = {"default_base": "docker://python:{python}-slim", "python": "3.11"}


def outcome(spec: object) -> tuple[str, dict[str, object]]:
    """``good`` or ``bad``, and what the golden file holds beside the spec."""
    try:
        image = parse(spec).image_spec(**CONTEXT)
    except SpecError as error:
        return "bad", {"code": error.code, "field": error.field}
    made = {"canonical": image.canonical().decode(), "digest": image.digest}
    return "good", {"context": CONTEXT, **made}


def add(name: str, spec: object) -> Path:
    """Write the file; :raises FileExistsError: golden files are never changed."""
    kind, rest = outcome(spec)
    path = Path(__file__).with_name(f"{kind}-{name}.json")
    with path.open("x", encoding="utf-8") as file:
        json.dump({"spec": spec, **rest}, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return path


if __name__ == "__main__":
    print(add(sys.argv[1], json.load(sys.stdin)))
