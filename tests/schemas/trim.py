"""Write the schemas in this folder from the projects' own files, without prose and with equal parts shared.

python tests/schemas/trim.py ray.io_rayjobs.yaml compose-spec.json v1.37.0-local-strict

README.md names the sources of these files.
"""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

PROSE = {
    "description",
    "$comment",
    "deprecatedMessage",
    "x-kubernetes-map-type",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
}
SHORT = 200
"""Characters of JSON below which a part is not worth a name."""


def trimmed(node: Any, names: bool = False) -> Any:
    """Return the schema without prose; `names`: the keys of this mapping are field names, whatever they are
    called.
    """
    if isinstance(node, list):
        return [trimmed(item) for item in node]
    if not isinstance(node, dict):
        return node
    fields = {"properties", "patternProperties", "definitions", "$defs"}
    return {
        key: trimmed(value, not names and key in fields)
        for key, value in node.items()
        if names or key not in PROSE
    }


def strict(node: Any) -> Any:
    """Return the schema as the Kubernetes API server reads a custom resource, but refusing fields that it
    would drop silently.
    """
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    closed = (
        isinstance(node.get("properties"), dict)
        and "additionalProperties" not in node
        and "x-kubernetes-preserve-unknown-fields" not in node
    )
    return {key: strict(value) for key, value in node.items()} | (
        {"additionalProperties": False} if closed else {}
    )


def shared(schema: Any) -> Any:
    """Move parts that occur more than once to `$defs`, named by their hash."""
    counts: Counter[str] = Counter()

    def count(node: Any) -> None:
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            count(child)
        if isinstance(node, dict) and node.get("type") in ("object", "array"):
            counts[json.dumps(node, sort_keys=True)] += 1

    defs: dict[str, Any] = {}

    def replace(node: Any) -> Any:
        if isinstance(node, list):
            return [replace(item) for item in node]
        if not isinstance(node, dict):
            return node
        whole = json.dumps(node, sort_keys=True)
        parts = {key: replace(value) for key, value in node.items()}
        if counts[whole] < 2 or len(whole) < SHORT:
            return parts
        name = hashlib.sha256(whole.encode()).hexdigest()[:12]
        defs[name] = parts
        return {"$ref": f"#/$defs/{name}"}

    count(schema)
    return replace(schema) | {"$defs": defs}


def resolved(node: Any, file: Path) -> Any:
    """Return the part of this file's schema with every reference replaced by its target."""
    if isinstance(node, list):
        return [resolved(item, file) for item in node]
    if not isinstance(node, dict):
        return node
    if isinstance(node.get("$ref"), str):
        name, _, path = node["$ref"].partition("#")
        named = file.with_name(Path(name).name) if name else file
        found = json.loads(named.read_text())
        for part in path.strip("/").split("/") if path else ():
            found = found[part]
        return resolved(found, named)
    return {key: resolved(value, file) for key, value in node.items()}


def kubernetes(folder: Path) -> Any:
    """Return the kinds of deploy/kuberay/namespace.yaml, each under its name."""
    files = {
        "Namespace": "namespace-v1",
        "ServiceAccount": "serviceaccount-v1",
        "NetworkPolicy": "networkpolicy-networking-v1",
    }
    files = {kind: folder / f"{name}.json" for kind, name in files.items()}
    return {kind: trimmed(resolved(json.loads(file.read_text()), file)) for kind, file in files.items()}


def main(rayjobs: str, compose: str, kubernetes_schemas: str) -> None:
    """Write all schema files; a RayJob holds the spec of a RayCluster, so one schema serves both."""
    folder = Path(__file__).parent
    versions = yaml.safe_load(Path(rayjobs).read_text())["spec"]["versions"]
    whole = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    whole["properties"].pop("status")
    for name, schema in (
        ("kuberay", shared(strict(trimmed(whole)))),
        ("compose", trimmed(json.loads(Path(compose).read_text()))),
        ("kubernetes", kubernetes(Path(kubernetes_schemas))),
    ):
        (folder / f"{name}.json").write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
