"""Rights of the pods and machines of deploy/: Pod Security, network policies, cloud roles. Offline: no
Kubernetes has admitted them.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
DEPLOY = CHECKOUT / "deploy"
CLUSTER = yaml.safe_load((DEPLOY / "kuberay/raycluster.yaml").read_text())
JOB = yaml.safe_load((DEPLOY / "kuberay/rayjob.yaml").read_text())
NAMESPACE = list(yaml.safe_load_all((DEPLOY / "kuberay/namespace.yaml").read_text()))
POLICIES = {one["metadata"]["name"]: one["spec"] for one in NAMESPACE if one["kind"] == "NetworkPolicy"}
SCHEMAS = json.loads((CHECKOUT / "tests/schemas/kubernetes.json").read_text())
RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def pods() -> Iterator[tuple[str, Any]]:
    """Yield every pod's template; the head's with the autoscaler that the operator adds to it."""
    for kind, cluster in (("cluster", CLUSTER["spec"]), ("job", JOB["spec"]["rayClusterSpec"])):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            template = deepcopy(group["template"])
            if "groupName" not in group:
                template["spec"]["containers"].append({"name": "autoscaler"} | cluster["autoscalerOptions"])
            yield f"{kind} {group.get('groupName', 'head')}", template
    yield "job submitter", JOB["spec"]["submitterPodTemplate"]


def violations(pod: Any) -> list[str]:
    """List what Pod Security `restricted` refuses:
    https://kubernetes.io/docs/concepts/security/pod-security-standards/ (v1.37).
    """
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    whole = pod.get("securityContext", {})
    found += ["sysctls"] if whole.get("sysctls") else []
    found += [
        f"volume {volume['name']}"
        for volume in pod.get("volumes", ())
        if not set(volume) - {"name"} <= RESTRICTED_VOLUMES
    ]
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        own, name = container.get("securityContext", {}), container["name"]
        checks = {
            "privileged": not own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "capabilities": (
                own.get("capabilities", {}).get("drop") == ["ALL"]
                and set(own["capabilities"].get("add", ())) <= {"NET_BIND_SERVICE"}
            ),
            "runAsNonRoot": own.get("runAsNonRoot", whole.get("runAsNonRoot")) is True,
            "runAsUser": own.get("runAsUser", whole.get("runAsUser")) != 0,
            "seccompProfile": (
                (own.get("seccompProfile") or whole.get("seccompProfile") or {}).get("type")
                in ("RuntimeDefault", "Localhost")
            ),
            "procMount": own.get("procMount", "Default") == "Default",
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", ())),
        }
        found += [f"{name}: {check}" for check, held in checks.items() if not held]
    return found


PODS = dict(pods())


class TestPodSecurity:
    @pytest.mark.parametrize("name", PODS)
    def test_pod_passes_pod_security_restricted(self, name: str) -> None:
        assert violations(PODS[name]["spec"]) == []

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            ({"hostNetwork": True}, "hostNetwork"),
            ({"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "volume x"),
            ({"securityContext": {"runAsUser": 0}}, "ray-head: runAsNonRoot"),
            ({"securityContext": {"runAsNonRoot": True}}, "autoscaler: seccompProfile"),
            (
                {"containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": False}}]},
                "c: capabilities",
            ),
            (
                {"containers": [{"name": "c", "securityContext": {"capabilities": {"drop": ["ALL"]}}}]},
                "c: allowPrivilegeEscalation",
            ),
        ],
    )
    def test_violations_finds_what_restricted_refuses(self, change: dict[str, Any], found: str) -> None:
        assert found in violations(PODS["cluster head"]["spec"] | change)

    def test_namespace_enforces_restricted(self) -> None:
        space = next(one for one in NAMESPACE if one["kind"] == "Namespace")
        assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        names = {one["metadata"]["namespace"] for one in (CLUSTER, JOB, *NAMESPACE) if one is not space}
        assert names == {space["metadata"]["name"]}

    def test_only_the_autoscaler_mounts_a_kubernetes_token(self) -> None:
        accounts = {one["metadata"]["name"]: one for one in NAMESPACE if one["kind"] == "ServiceAccount"}
        for name, pod in PODS.items():
            spec = pod["spec"]
            assert spec["automountServiceAccountToken"] is False, name
            assert spec["serviceAccountName"] == (
                "demoscale-head" if name.endswith("head") else "demoscale-worker"
            )
            assert accounts[spec["serviceAccountName"]]["automountServiceAccountToken"] is False
            tokens = {
                volume["name"]
                for volume in spec.get("volumes", ())
                if "serviceAccountToken" in json.dumps(volume)
            }
            mounted = {
                one["name"]
                for one in spec["containers"]
                for mount in one.get("volumeMounts", ())
                if mount["name"] in tokens
            }
            assert mounted == ({"autoscaler"} if name.endswith("head") else set()), name


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return set(selector.get("matchLabels", {}).items()) <= set(labels.items())


def labels_of(name: str) -> dict[str, str]:
    """Return a pod's labels, with the one that KubeRay adds."""
    kind = (
        {}
        if name.endswith("submitter")
        else {"ray.io/node-type": "head" if name.endswith("head") else "worker"}
    )
    return {**PODS[name]["metadata"]["labels"], **kind}


def admitted(source: dict[str, str], target: dict[str, str], port: int, space: str | None = None) -> bool:
    """Return whether some policy lets a pod with the labels `source` open a port of a pod with the labels
    `target`; space: the source's namespace, if another.
    """

    def peer(one: dict[str, Any]) -> bool:
        spaces = one.get("namespaceSelector")
        reached = (
            space is None
            if spaces is None
            else selects(spaces, {"kubernetes.io/metadata.name": space or "demoscale"})
        )
        return "ipBlock" not in one and reached and selects(one.get("podSelector", {}), source)

    rules = [
        rule
        for policy in POLICIES.values()
        if selects(policy["podSelector"], target)
        for rule in policy.get("ingress", ())
    ]
    return any(
        any(map(peer, rule["from"])) and port in [one["port"] for one in rule.get("ports", [{"port": port}])]
        for rule in rules
    )


class TestNetwork:
    @pytest.mark.parametrize("one", NAMESPACE, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
    def test_namespace_object_is_valid_for_kubernetes(self, one: dict[str, Any]) -> None:
        jsonschema.validate(one, SCHEMAS[one["kind"]])
        with pytest.raises(jsonschema.ValidationError, match="podSelectorr"):
            jsonschema.validate(one | {"podSelectorr": {}}, SCHEMAS[one["kind"]])

    def test_network_policy_denies_by_default(self) -> None:
        assert POLICIES["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in POLICIES.values())

    def test_network_policies_open_the_documented_ports_only(self) -> None:
        head, worker, submitter = labels_of("job head"), labels_of("job trainers"), labels_of("job submitter")
        operator, stranger, mlflow = (
            {"app.kubernetes.io/name": "kuberay-operator"},
            {"app": "stranger"},
            {"app": "mlflow"},
        )
        nodes = (head, worker)
        assert all(
            admitted(source, target, port)
            for source in nodes
            for target in nodes
            for port in (6379, 8265, 10001, 34567)
        )
        assert admitted(submitter, head, 8265)
        assert admitted(operator, head, 8265, "kuberay-system")
        assert admitted({}, worker, 8080, "monitoring")
        assert admitted(head, mlflow, 5000)
        for port in (6379, 8265, 10001, 8080, 34567):
            assert not any(
                admitted(stranger, target, port, space) for target in nodes for space in (None, "default")
            )
            assert not admitted(submitter, worker, port)
            assert not any(admitted(source, submitter, port) for source in nodes)
            assert port == 8265 or not admitted(operator, head, port, "kuberay-system")
            assert port == 8080 or not admitted({}, head, port, "monitoring")
        assert not admitted(worker, mlflow, 5000)

    def test_network_policies_block_the_instance_metadata(self) -> None:
        blocks = [
            peer["ipBlock"]
            for policy in POLICIES.values()
            for rule in policy.get("egress", ())
            for peer in rule["to"]
            if "ipBlock" in peer
        ]
        assert len(blocks) == 3
        assert all("169.254.0.0/16" in block["except"] for block in blocks)
        assert all(
            "ports" in rule or rule["to"] == [{"podSelector": POLICIES["ray"]["podSelector"]}]
            for rule in POLICIES["ray"]["egress"]
        )


class Template(yaml.SafeLoader):
    """CloudFormation's own tags as {tag: value}."""


Template.add_multi_constructor("!", lambda loader, tag, node: {tag: loader.construct_scalar(node)})  # type: ignore[no-untyped-call]
ROLES = yaml.load((DEPLOY / "aws-roles.yaml").read_text(), Template)["Resources"]
CALLS = {
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "upload_file": "s3:PutObject",
    "list_objects_v2": "s3:ListBucket",
    "delete_object": "s3:DeleteObject",
}


def flat(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class TestRolesOnAws:
    def test_aws_roles_are_valid_for_cloudformation(self) -> None:
        lint = [str(Path(sys.executable).with_name("cfn-lint")), str(DEPLOY / "aws-roles.yaml")]
        done = subprocess.run(lint, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

    def test_aws_worker_role_has_the_calls_of_the_storage_on_the_bucket(self) -> None:
        worker = ROLES["WorkerRole"]["Properties"]
        assert worker["ManagedPolicyArns"] == [{"Ref": "BucketPolicy"}]
        assert "Policies" not in worker
        statements = ROLES["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
        called = set(
            re.findall(r'_call\(\s*"(\w+)"', (CHECKOUT / "orchestrator/storage/base.py").read_text())
        )
        assert called
        assert {action for one in statements for action in flat(one["Action"])} == {
            CALLS[call] for call in called
        }
        bucket = "arn:${AWS::Partition}:s3:::${Bucket}"
        for one in statements:
            assert one["Resource"] == {"Sub": bucket if one["Action"] == "s3:ListBucket" else f"{bucket}/*"}

    def test_aws_head_role_may_only_start_workers_with_their_role(self) -> None:
        statements = ROLES["HeadRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
        wide = {action for one in statements if one["Resource"] == "*" for action in flat(one["Action"])}
        assert wide == {"ec2:DescribeInstances", "ec2:DescribeInstanceStatus", "ec2:RunInstances"}
        assert [one["Resource"] for one in statements if "iam:PassRole" in flat(one["Action"])] == [
            {"GetAtt": "WorkerRole.Arn"}
        ]
        assert all("Condition" in one for one in statements if one["Resource"] != "*")
        assert not any("*" in action for one in statements for action in flat(one["Action"]))

    def test_aws_machines_have_these_roles(self) -> None:
        kinds = yaml.safe_load((DEPLOY / "aws.yaml").read_text())["available_node_types"]
        given = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in kinds.items()}
        assert given == {
            name: ROLES["HeadProfile" if name == "head" else "WorkerProfile"]["Properties"][
                "InstanceProfileName"
            ]
            for name in kinds
        }
        assert all(
            kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required" for kind in kinds.values()
        )
