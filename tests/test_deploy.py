"""deploy/: the RayJob and the image, as far as that can be checked without Kubernetes and Docker."""

import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydenoise import __version__
from raydenoise.config import DenoiseConfig, parse

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "deploy" / "rayjob.yaml").read_text()
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
RAY = re.search(r"^ray==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[1]  # type: ignore[index]

# Fields and types of ray.io/v1 as far as the manifest uses them, from KubeRay's reference of its release 1.6.2. A name
# stands for another of these objects, a list for many, a set for its allowed values, `dict` for names and strings.
KUBERAY: dict[str, dict[str, Any]] = {
    "RayJob": {"apiVersion": {"ray.io/v1"}, "kind": {"RayJob"}, "metadata": dict, "spec": "RayJobSpec"},
    "RayJobSpec": {
        "entrypoint": str,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
        "backoffLimit": int,
        "submitterConfig": "SubmitterConfig",
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "activeDeadlineSeconds": int,
        "rayClusterSpec": "RayClusterSpec",
    },
    "SubmitterConfig": {"backoffLimit": int},
    "RayClusterSpec": {
        "rayVersion": str,
        "authOptions": "AuthOptions",
        "enableInTreeAutoscaling": bool,
        "autoscalerOptions": "AutoscalerOptions",
        "headGroupSpec": "HeadGroupSpec",
        "workerGroupSpecs": ["WorkerGroupSpec"],
    },
    "AuthOptions": {"mode": {"disabled", "token"}, "secretName": str},
    "AutoscalerOptions": {"idleTimeoutSeconds": int, "resources": "Pod", "securityContext": "Pod"},
    "HeadGroupSpec": {"serviceType": {"ClusterIP"}, "rayStartParams": dict, "template": "Pod"},
    "WorkerGroupSpec": {
        "groupName": str,
        "replicas": int,
        "minReplicas": int,
        "maxReplicas": int,
        "rayStartParams": dict,
        "template": "Pod",
    },
}


def wrong(value: Any, kind: Any, at: str) -> Iterator[str]:
    """Say where a value is not what KubeRay takes there."""
    match kind:
        case "Pod":  # Kubernetes' own; not looked into here
            return
        case str():
            yield from (f"{at}.{name}: no such field" for name in value.keys() - KUBERAY[kind].keys())
            for name in value.keys() & KUBERAY[kind].keys():
                yield from wrong(value[name], KUBERAY[kind][name], f"{at}.{name}")
        case [item]:
            for index, entry in enumerate(value):
                yield from wrong(entry, item, f"{at}[{index}]")
        case set():
            if value not in kind:
                yield f"{at}: {value!r}"
        case _ if kind is dict:
            yield from (
                f"{at}.{name}: {entry!r} is no string" for name, entry in value.items() if type(entry) is not str
            )
        case _:
            if type(value) is not kind:
                yield f"{at}: {value!r}"


@pytest.fixture
def job() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


@pytest.fixture
def cluster(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["rayClusterSpec"]


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def gigabytes(quantity: str) -> float:
    return float(quantity.removesuffix("Gi")) * 2**30 / 1e9


def options(job: dict[str, Any]) -> DenoiseConfig:
    python, script, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", "/app/jobs/denoise.py")
    return parse(DenoiseConfig, arguments, prog="test", description="")


def test_kuberay_knows_every_field(job: dict[str, Any]) -> None:
    assert list(wrong(job, "RayJob", "job")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: job["spec"].update(ttlSeconds=1), "job.spec.ttlSeconds: no such field"),
        (lambda job: job["spec"].update(backoffLimit="0"), "job.spec.backoffLimit: '0'"),
        (lambda job: job["spec"].update(submissionMode="Job"), "job.spec.submissionMode: 'Job'"),
        (
            lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
            "job.spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus: 0 is no string",
        ),
        (
            lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1].update(minReplica=0),
            "job.spec.rayClusterSpec.workerGroupSpecs[1].minReplica: no such field",
        ),
    ],
)
def test_a_mistake_would_be_found(job: dict[str, Any], change: Any, message: str) -> None:
    change(job)
    assert list(wrong(job, "RayJob", "job")) == [message]


def test_the_versions_are_those_of_the_lock(cluster: dict[str, Any]) -> None:
    assert cluster["rayVersion"] == RAY
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(cluster)}
    tag = f"registry-REPLACE_ME/raydenoise:{__version__}-ray{RAY}"
    assert images == {tag, f"{tag}-gpu"}
    builds = [shlex.split(line[1:].strip()) for line in DOCKERFILE.splitlines() if line.startswith("#   docker build")]
    assert {build[build.index("-t") + 1]: "GPU=1" in build for build in builds} == {tag: False, f"{tag}-gpu": True}
    assert "RUN pip install --require-hashes -r requirements.lock" in DOCKERFILE


def test_the_job_takes_the_options_and_as_many_gpus_as_may_come(job: dict[str, Any], cluster: dict[str, Any]) -> None:
    config = options(job)
    assert (ROOT / "jobs" / "denoise.py").is_file()
    gpu = next(group for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu")
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert config.actors * config.gpus_per_actor == gpu["maxReplicas"] * int(limits["nvidia.com/gpu"])
    mounted = {mount["mountPath"] for mount in gpu["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert all(any(path.startswith(f"{mount}/") for mount in mounted) for path in (config.input, config.output))


def test_the_head_takes_no_work_and_workers_come_from_none(cluster: dict[str, Any]) -> None:
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True
    bounds = {group["groupName"]: (group["minReplicas"], group["maxReplicas"]) for group in cluster["workerGroupSpecs"]}
    assert bounds == {"gpu": (0, 4), "cpu": (0, 0)}


def test_the_cluster_goes_with_the_job_and_another_one_goes_on(job: dict[str, Any]) -> None:
    spec = job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert (spec["backoffLimit"], spec["submitterConfig"]["backoffLimit"]) == (1, 0)


def test_a_broken_picture_brings_no_second_cluster(job: dict[str, Any]) -> None:
    assert options(job).allow_failed == "all"


SPOT = {
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
OTHERS = [{}, {"eks.amazonaws.com/capacityType": "ON_DEMAND"}, {"karpenter.sh/capacity-type": "on-demand"}]


def test_the_head_alone_keeps_off_spot_machines(cluster: dict[str, Any]) -> None:
    head, *workers = (group["template"]["spec"] for group in groups(cluster))
    required = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]  # of several, one would be enough
    assert {rule["operator"] for rule in term["matchExpressions"]} == {"NotIn"}

    def takes(labels: dict[str, str]) -> bool:
        return all(labels.get(rule["key"]) not in rule["values"] for rule in term["matchExpressions"])

    assert not any(takes({name: value}) for name, value in SPOT.items())
    assert all(takes(labels) for labels in OTHERS)
    assert not any("affinity" in worker for worker in workers)


def test_the_object_store_fits_its_memory(cluster: dict[str, Any]) -> None:
    for group in groups(cluster):
        (container,) = group["template"]["spec"]["containers"]
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]
        shm = next(volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm")
        assert shm["emptyDir"]["medium"] == "Memory"
        store = int(group["rayStartParams"]["object-store-memory"]) / 1e9
        room = gigabytes(shm["emptyDir"]["sizeLimit"])
        assert store < room < gigabytes(resources["limits"]["memory"]) / 2
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_every_pod_runs_without_rights_as_the_user_of_the_image(cluster: dict[str, Any]) -> None:
    user = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)[-1]
    assert f"--uid {user} " in DOCKERFILE
    contexts = [cluster["autoscalerOptions"]["securityContext"]]
    for group in groups(cluster):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(user) != 0
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        contexts += [container["securityContext"] for container in pod["containers"]]
    expected = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert contexts == [expected] * len(contexts)


def test_a_token_is_asked_for_and_no_secret_stands_in_the_file(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token", "secretName": "raydenoise-token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for group in groups(cluster):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "raydenoise-s3", "optional": True}}]
        assert "env" not in container
        assert group["rayStartParams"]["metrics-export-port"] == "8080"


def test_what_a_person_fills_in_is_marked_and_documented() -> None:
    assert set(re.findall(r"\S*?(\w+-REPLACE_ME)", TEXT)) == {"registry-REPLACE_ME", "claim-REPLACE_ME"}
    guide = (ROOT / "docs" / "cluster.md").read_text()
    named = ("registry-REPLACE_ME", "claim-REPLACE_ME", "raydenoise-token", "raydenoise-s3", "deploy/rayjob.yaml")
    assert all(name in guide for name in named)


def test_the_image_copies_files_that_the_build_may_see() -> None:
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in ignore if line and not line.startswith("#")]
    assert patterns[0] == "*"
    seen = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    sources = [word for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]]
    assert set(sources) == seen
    assert all((ROOT / source).exists() for source in sources)
    assert not any(fnmatch(name, pattern) for name in (".venv", ".git", "runs") for pattern in seen)


def test_the_base_image_is_pinned_and_has_the_python_of_the_lock() -> None:
    (base,) = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    assert "--python-version 3.11 " in (ROOT / "Makefile").read_text()
    assert "install -y --no-install-recommends wget" in DOCKERFILE  # for KubeRay's probes
    assert not re.search(r"index-url|https?://", DOCKERFILE)
