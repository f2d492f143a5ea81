"""The other files of `cluster/`: what Ray's cluster launcher reads, the image, and what the guide and `make` name."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml
from cluster_state import FOLDER

pytestmark = pytest.mark.usefixtures("nobody")


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


def test_the_image_has_what_it_copies() -> None:
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    let_in = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied:
        assert (FOLDER.parent / name).exists()
        assert f"!{name}" in let_in
    assert let_in[0] == "*"
    assert {"**/.*", "**/mlruns", "**/*.pem", "**/*.key"} <= set(let_in[let_in.index("!fedrobust") :])


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
