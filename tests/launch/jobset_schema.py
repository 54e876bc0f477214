"""Writes the part of JobSet's schema that `launch/jobset.yaml` is checked against.

`python -m tests.launch.jobset_schema CRD.yaml COMMIT`, with
`config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml` of kubernetes-sigs/jobset (Apache-2.0),
writes `jobset_schema.json`: the objects that the file has with the types, values and names that
they may have, as a server checks them, and other parts by name alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
JOBSET = HERE.parents[1] / "launch/jobset.yaml"
KEPT = ("type", "enum", "required", "pattern", "minimum", "maximum", "x-kubernetes-int-or-string")
FROM = "https://github.com/kubernetes-sigs/jobset, Apache-2.0, commit "


def part(schema: dict[str, Any], given: Any) -> dict[str, Any]:
    """Returns the schema of what is given; names that nothing describes are refused."""
    made = {key: schema[key] for key in KEPT if key in schema}
    if made.pop("x-kubernetes-int-or-string", False):
        made["type"] = ["integer", "string"]
    if isinstance(given, dict) and "properties" in schema:
        rest = {name: {} for name in schema["properties"]}
        known = {
            name: part(schema["properties"][name], given[name]) for name in rest if name in given
        }
        made |= {"properties": rest | known, "additionalProperties": False}
    elif isinstance(given, dict) and given:
        made["additionalProperties"] = part(schema["additionalProperties"], [*given.values()][0])
    elif isinstance(given, list) and given:
        whole: Any = {}
        for one in given:
            whole = whole | one if isinstance(one, dict) else one
        made["items"] = part(schema["items"], whole)
    return made


if __name__ == "__main__":
    crd = yaml.safe_load(Path(sys.argv[1]).read_text())
    given = yaml.safe_load(JOBSET.read_text())
    (version,) = (one for one in crd["spec"]["versions"] if one["name"] == "v1alpha2")
    schema = version["schema"]["openAPIV3Schema"]
    # What every object of Kubernetes may have is not written there.
    given["metadata"] = {}
    made = {"$comment": FROM + sys.argv[2]} | part(schema, given)
    (HERE / "jobset_schema.json").write_text(json.dumps(made, indent=1) + "\n")
