"""The manifests for Kubernetes: what Kubernetes and KubeRay say of them, and what their pods may do."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import yaml
from cluster_state import FOLDER

pytestmark = pytest.mark.usefixtures("nobody")

RAY = "2.60.0"
"""The version of the constraints, which the image and the manifests name."""

TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def exactly(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    """The schema of an object that has these fields and no others."""
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


# What the reference of KubeRay's ray.io/v1 says of the fields that are used here; the pods in them are checked as pods.
GROUP = {"rayStartParams": TEXTS, "template": exactly(("spec",), metadata={}, spec={"type": "object"})}
RAY_CLUSTER = exactly(
    ("rayVersion", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=TEXT,
    authOptions=exactly(("mode",), mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=exactly(
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}, idleTimeoutSeconds=NUMBER
    ),
    headGroupSpec=exactly(("rayStartParams", "template"), serviceType=TEXT, **GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": exactly(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            **GROUP,
        ),
    },
)
RAY_JOB = exactly(
    ("entrypoint", "clusterSelector"),
    clusterSelector=TEXTS,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypoint=TEXT,
    submitterPodTemplate=GROUP["template"],
)


@cache
def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def of_kind(kind: str, name: str = "kuberay.yaml") -> dict[str, Any]:
    (found,) = (document for document in documents(name) if document["kind"] == kind)
    return found


def pods() -> list[dict[str, Any]]:
    """The pods of the cluster and of the job."""
    cluster, job = of_kind("RayCluster")["spec"], of_kind("RayJob")["spec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups] + [job["submitterPodTemplate"]["spec"]]


def test_the_cluster_on_kubernetes_is_one() -> None:
    from jsonschema import Draft202012Validator

    for kind, schema in (("RayCluster", RAY_CLUSTER), ("RayJob", RAY_JOB)):
        found = of_kind(kind)
        assert found["apiVersion"] == "ray.io/v1"
        Draft202012Validator(schema).validate(found["spec"])
    assert of_kind("RayCluster")["spec"]["rayVersion"] == RAY
    assert f"ray=={RAY}" in (FOLDER.parent / "constraints.txt").read_text(encoding="utf-8").replace("[default]", "")
    assert of_kind("RayJob")["spec"]["clusterSelector"] == {"ray.io/cluster": of_kind("RayCluster")["metadata"]["name"]}


def test_everything_on_kubernetes_is_what_kubernetes_knows() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    native = [each for name in ("kuberay.yaml", "mlflow.yaml") for each in documents(name)]
    native = [each for each in native if not each["apiVersion"].startswith("ray.io/")]
    native += [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec} for spec in pods()]
    assert len(native) == 3 + 8 + 4
    for document in native:
        kubernetes.validate(document, "1.34", strict=True)
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(native[-1] | {"spec": pods()[0] | {"volume": []}}, "1.34", strict=True)


LABELS = {"ray.io/cluster": "fedrobust"}
"""What KubeRay puts on the pods of the cluster."""


def labelled() -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Every pod of the manifests, with its labels."""
    job = of_kind("RayJob")["spec"]["submitterPodTemplate"]
    native = [each["spec"]["template"] for each in documents("mlflow.yaml") if "template" in each["spec"]]
    return [
        *((LABELS, pod) for pod in pods()[:-1]),
        *((template["metadata"]["labels"], template["spec"]) for template in (job, *native)),
    ]


def test_every_pod_that_listens_is_guarded_by_a_policy() -> None:
    policies = [
        each["spec"]
        for name in ("kuberay.yaml", "mlflow.yaml")
        for each in documents(name)
        if each["kind"] == "NetworkPolicy"
    ]
    every = labelled()
    assert len(every) == 6
    for labels, pod in every:
        if not any("ports" in container for container in pod["containers"]) and labels != LABELS:
            continue
        (policy,) = (each for each in policies if each["podSelector"]["matchLabels"].items() <= labels.items())
        assert "Ingress" in policy["policyTypes"] and policy["ingress"]
        for rule in policy["ingress"]:
            assert rule["from"], "a rule without it lets everybody in"
            for peer in rule["from"]:
                assert peer.keys() <= {"podSelector", "namespaceSelector"}
                assert all(selector["matchLabels"] for selector in peer.values())
                known = [found for found, _ in every] + [{"app.kubernetes.io/name": "kuberay-operator"}]
                assert any(peer["podSelector"]["matchLabels"].items() <= found.items() for found in known)
            for port in rule.get("ports", []):
                named = [each["name"] for container in pod["containers"] for each in container.get("ports", [])]
                assert port["port"] in named or labels == LABELS
    database = next(
        policy for policy in policies if policy["podSelector"]["matchLabels"] == {"app": "fedrobust-postgres"}
    )
    assert database["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"app": "mlflow"}}}]
    services = [each for each in documents("mlflow.yaml") if each["kind"] == "Service"]
    assert all(each["spec"].get("type", "ClusterIP") == "ClusterIP" for each in services)
    assert of_kind("RayCluster")["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_pods_can_do_little_beside_their_work() -> None:
    head = pods()[0]
    for _, pod in labelled():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod is head or pod["automountServiceAccountToken"] is False
        assert not pod.get("hostNetwork") and not any("hostPath" in volume for volume in pod.get("volumes", []))
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            words = " ".join([*container.get("command", []), *container.get("args", [])])
            assert "PASSWORD" not in words and "://" not in words, "everyone reads a command line"


def test_claims_secrets_and_services_that_are_named_are_there() -> None:
    every = [each for name in ("kuberay.yaml", "mlflow.yaml") for each in documents(name)]
    claims = {each["metadata"]["name"] for each in every if each["kind"] == "PersistentVolumeClaim"}
    specs = pods() + [
        each["spec"]["template"]["spec"] for each in every if each["kind"] in ("Deployment", "StatefulSet")
    ]
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for spec in specs
        for volume in spec.get("volumes", [])
        if "persistentVolumeClaim" in volume
    }
    assert used == claims
    for spec in specs:
        mounted = {mount["name"] for each in spec["containers"] for mount in each.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in spec.get("volumes", [])}
    variables = {each["name"]: each.get("value") for each in pods()[0]["containers"][0]["env"]}
    assert variables["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert of_kind_and_name(every, "Service", "mlflow")["spec"]["ports"][0]["port"] == 5000
    # Passwords are made on the command line: no manifest holds one.
    assert not [each for each in every if each["kind"] == "Secret"]


def of_kind_and_name(every: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (each for each in every if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def test_every_card_is_shared() -> None:
    from fedrobust.experiment import Workers
    from fedrobust.federation.pool import share

    (gpus,) = (group for group in of_kind("RayCluster")["spec"]["workerGroupSpecs"] if group["groupName"] == "gpus")
    (container,) = gpus["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    node = {"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}
    assert share(Workers(), node, clients=20).count == 4
