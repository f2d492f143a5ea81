"""What of a working folder leaves it: text that a job needs; no keys, no data, nothing from outside of the folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import zipfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_server import TOKEN, Server
from nasty import NAMES
from refused import refused

from fedrobust.cli import main
from fedrobust.cluster import ClusterError, find_cluster, submit
from fedrobust.cluster import folder as shipped_from
from fedrobust.cluster.folder import key_in, select, sort_out
from fedrobust.cluster.shipping import prepare
from fedrobust.errors import Origin
from fedrobust.texts import visible

pytestmark = pytest.mark.usefixtures("nobody")

EXPERIMENT = "name: small\ndata: {source: {name: npz, path: nowhere.npz}}\n"
BEGIN, END = "-----BEGIN", "-----"  # so that this file holds no key
PEM = f"{BEGIN} PRIVATE KEY{END}\nMC4CAQAwBQYDK2VwBCIEIA\n{BEGIN.replace('BEGIN', 'END')} PRIVATE KEY{END}\n"
SECRETS = [
    ".env",
    ".env.local",
    "prod.env",
    ".aws/credentials",
    ".azure/accessTokens.json",
    ".docker/config.json",
    ".git-credentials",
    ".kube/config",
    "kubeconfig.yaml",
    ".netrc",
    "_netrc",
    ".npmrc",
    ".pgpass",
    "pgpass.conf",
    ".pypirc",
    ".ray/auth_token",
    ".ssh/config",
    "auth_token",
    "auth_token.txt",
    "token",
    "hf-token.txt",
    "api_key.txt",
    "passwords.txt",
    "htpasswd",
    "id_rsa",
    "id_ed25519.txt",
    "id_ecdsa.bak",
    "ssh_host_rsa_key",
    "cert.p12",
    "cert.pfx",
    "server.key",
    "coordinator.pem",
    "coordinator.pem.txt",
    "coordinator.pem.bak",
    "store.jks",
    "vault.kdbx",
    "client_secret_123.json",
    "service-account.json",
    "service_account_key.json",
    "application_default_credentials.json",
    "aws-credentials.ini",
    "secrets.yaml",
    "secret.toml",
    "kaggle.json",
    "terraform.tfvars",
    "terraform.tfstate",
    "mlruns/keys/coordinator.pem",
    "mlruns/cluster/env",
    "keys/mine.txt",
]
DATA = [
    "data/table.txt",
    "Data/raw/a.json",
    "datasets/labels.yaml",
    "mlruns/mlflow.db",
    "mlruns/runs/1/config.yaml",
    "mlruns.db",
    "mlflow.db-wal",
    "store.sqlite3",
    "dump.sql",
    "patients.csv",
    "patients.xlsx",
    "patches.npz",
    "patches.h5",
    "table.parquet",
    "slide.svs",
    "scan.dcm",
    "cell.png",
    "cell.TIFF",
    "model.pt",
    "model.ckpt",
    "weights.bin",
    "weights.safetensors",
    "objects.pkl",
    "archive.tar.gz",
    "archive.zip",
    "notebook.ipynb",
    "run.log",
    "core",
    "environment/pyvenv.cfg",
    "environment/lib/python3.11/site-packages/a.py",
    "environment/share/b.py",
    "node_modules/a.json",
    "__pycache__/mine.py",
    ".ipynb_checkpoints/mine.py",
    "build/lib/a.py",
    "mine.egg-info/top_level.txt",
    "lightning_logs/version_0/hparams.yaml",
    "wandb/run.json",
]
CODE = [
    "a.py",
    "small.yaml",
    "mine.json",
    "package/data/__init__.py",
    "package/data/table.txt",
    "tokens.py",
    "x/keys.py",
]


def write(folder: Path, *names: str, content: str = "x = 1\n") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")


def git(folder: Path, *words: str) -> None:
    command = [
        "git",
        "-C",
        str(folder),
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@t",
        "-c",
        "protocol.file.allow=always",
    ]
    subprocess.run([*command, *words], check=True, capture_output=True)


def shipped(folder: Path) -> list[str]:
    return sorted(select(folder).files)


@pytest.mark.parametrize("how", ["plain", "repository", "tracked"])
@pytest.mark.parametrize("below", ["", "sub/deeper"])
def test_secrets_and_data_stay_at_every_depth(workplace: Path, below: str, how: str) -> None:
    write(workplace / below, *SECRETS, *DATA, *CODE)
    if how != "plain":
        git(workplace, "init", "--quiet")
    if how == "tracked":
        git(workplace, "add", "--all", "--force")
    found = select(workplace)
    assert sorted(found.files) == sorted(str(PurePosixPath(below, name)) for name in CODE)
    for name in (*SECRETS, *DATA):
        assert found.why_not(str(PurePosixPath(below, name))), name
    summary = "\n".join(found.summary())
    assert f"sends {len(CODE)} files" in summary
    assert "keys or credentials" in summary
    assert "server.key" in "\n".join(found.listing())


@pytest.mark.parametrize("repository", [True, False])
def test_gitignore_is_honoured_with_and_without_a_repository(workplace: Path, repository: bool) -> None:
    write(workplace, "a.py", "own/b.py", "own/c.json", "notes.md", "own/kept.md", "gone.py")
    write(workplace, ".gitignore", content="*.md\n!/own/kept.md\n")
    write(workplace / "own", ".gitignore", content="c.json\n")
    if repository:
        git(workplace, "init", "--quiet")
        git(workplace, "add", "gone.py")
    (workplace / "gone.py").unlink()
    found = select(workplace)
    assert sorted(found.files) == ["a.py", "own/b.py", "own/kept.md"]
    assert sorted(found.left[shipped_from.IGNORED]) == ["notes.md", "own/c.json"]
    assert found.summary()[1].endswith("what git ignores 2")
    assert not (workplace / ".git").exists() or repository


def test_the_repository_may_begin_above(workplace: Path) -> None:
    write(workplace, "below/a.py", "below/b.json", "beside.py")
    write(workplace, ".gitignore", content="*.json\n")
    git(workplace, "init", "--quiet")
    assert shipped(workplace / "below") == ["a.py"]


def test_repositories_inside_are_listed_by_their_own_git(
    workplace: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    origin = tmp_path_factory.mktemp("origin")
    write(origin, "c.py", "d.json")
    write(origin, ".gitignore", content="d.json\n")
    git(origin, "init", "--quiet")
    git(origin, "add", "--all")
    git(origin, "commit", "--quiet", "-m", "x")
    git(workplace, "init", "--quiet")
    git(workplace, "submodule", "--quiet", "add", str(origin), "module")
    shutil.copytree(origin, workplace / "nested")
    assert shipped(workplace) == ["module/c.py", "nested/c.py"]


@pytest.mark.parametrize(
    ("variable", "value"), [("GIT_DIR", "elsewhere/.git"), ("GIT_INDEX_FILE", "elsewhere/.git/index")]
)
def test_no_other_repository_is_listed(
    workplace: Path, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workplace, "own/a.py", "elsewhere/b.py")
    for name in ("own", "elsewhere"):
        git(workplace / name, "init", "--quiet")
        git(workplace / name, "add", "--all")
    monkeypatch.setenv(variable, str(workplace / value))
    assert shipped(workplace / "own") == ["a.py"]


def test_settings_of_the_folder_run_no_program(workplace: Path) -> None:
    write(workplace, "a.py")
    git(workplace, "init", "--quiet")
    hook = workplace / ".git" / "monitor"
    hook.write_text(f"#!/bin/sh\ntouch '{workplace}/ran'\n")
    hook.chmod(0o755)
    git(workplace, "config", "core.fsmonitor", str(hook))
    assert shipped(workplace) == ["a.py"]
    assert not (workplace / "ran").exists()


def test_a_repository_that_git_cannot_read_ships_nothing(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace, "small.yaml", content=EXPERIMENT)
    git(workplace, "init", "--quiet")
    (workplace / ".git" / "config").write_text("[broken")
    with refused(ClusterError, file=workplace, says="bad config"):
        prepare(["run", "small.yaml"])
    monkeypatch.setenv("PATH", str(workplace))
    with refused(ClusterError, file=workplace, says="no git"):
        prepare(["run", "small.yaml"])


def test_without_git_and_gitignore_kinds_decide(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace, "sub/a.py", *SECRETS, *DATA)
    (workplace / "out").symlink_to("/etc")
    monkeypatch.setenv("PATH", str(workplace))
    assert shipped(workplace) == ["sub/a.py"]
    write(workplace, "sub/.gitignore")
    with refused(ClusterError, file=workplace, says="no git"):
        select(workplace)


@pytest.mark.parametrize("repository", [True, False])
def test_no_link_leads_out_of_the_folder(
    workplace: Path, repository: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside, "private.txt", "folder/inner.txt", content="of somebody else")
    write(workplace, "a.py", "real/b.py", "moved/c.py", "data/table.txt")
    if repository:
        git(workplace, "init", "--quiet")
        git(workplace, "add", "--all", "--force")
    shutil.rmtree(workplace / "moved")
    write(outside, "moved/c.py", content="of somebody else")
    (workplace / "moved").symlink_to(outside / "moved")
    for name, target in {
        "absolute.txt": outside / "private.txt",
        "relative.txt": os.path.relpath(outside / "private.txt", workplace),
        "folder": outside / "folder",
        "chain.txt": "absolute.txt",
        "self.txt": "self.txt",
        "dead.txt": "nowhere.txt",
        "table.txt": "data/table.txt",
        "inside.py": "real/b.py",
        "real/up.py": "../a.py",
    }.items():
        (workplace / name).symlink_to(target)
    found = select(workplace)
    assert sorted(found.files) == ["a.py", "inside.py", "real/b.py", "real/up.py"]
    assert found.files["inside.py"] == b"x = 1\n"
    assert {"absolute.txt", "chain.txt", "relative.txt", "self.txt"} <= set(found.left[shipped_from.LINK])


def test_special_files_are_not_waited_for(workplace: Path) -> None:
    write(workplace, "a.py")
    os.mkfifo(workplace / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("talk.py")
        assert shipped(workplace) == ["a.py"]
        with refused(ClusterError, file="pipe.yaml"):
            os.mkfifo("pipe.yaml")
            prepare(["run", "pipe.yaml"])


@pytest.mark.parametrize("swap", ["fifo", "link", "folder", "gone", "link above"])
def test_a_file_that_is_replaced_while_it_is_read(
    workplace: Path, swap: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside, "a.py", content="of somebody else")
    write(workplace, "sub/a.py")
    read = shipped_from._read

    def swapped(folder: Path, name: str, most: int) -> bytes:
        path = folder / name
        if swap == "link above":
            path.parent.rename(folder / "before")
            path.parent.symlink_to(outside)
            return read(folder, name, most)
        path.unlink()
        if swap == "fifo":
            os.mkfifo(path)
        elif swap == "link":
            path.symlink_to(outside / "a.py")
        elif swap == "folder":
            path.mkdir()
        return read(folder, name, most)

    monkeypatch.setattr(shipped_from, "_read", swapped)
    with refused(ClusterError, file="sub/a.py"):
        select(workplace)


def test_a_file_that_grows_ends_it(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace, "a.py")
    read = shipped_from._read
    monkeypatch.setattr(
        shipped_from,
        "_read",
        lambda folder, name, most: (write(folder, name, content="y" * 99), read(folder, name, 9))[1],
    )
    with refused(ClusterError, file="a.py", says="grows"):
        select(workplace)


FORMS = {
    "PKCS8": PEM,
    "RSA": PEM.replace(" PRIVATE", " RSA PRIVATE"),
    "OpenSSH": PEM.replace(" PRIVATE", " OPENSSH PRIVATE"),
    "encrypted": PEM.replace(" PRIVATE", " ENCRYPTED PRIVATE"),
    "PGP": PEM.replace("KEY-", "KEY BLOCK-").replace(" PRIVATE", " PGP PRIVATE"),
    "Windows": PEM.replace("\n", "\r\n"),
    "YAML": "tls:\n  key: |\n    " + PEM.replace("\n", "\n    "),
    "JSON": '{"type": "account", "private_key": "' + PEM.replace("\n", "\\n") + '"}',
    "Python": f'"""A module."""\nKEY = """{PEM}"""\n',
    "behind much": "#" * 200_000 + "\n" + PEM,
    "PuTTY": "PuTTY-User-Key-File" + "-3: ssh-ed25519\n",
    "age": "AGE-SECRET-KEY-" + "1" + "Q" * 58,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_private_key_under_any_name_is_refused(workplace: Path, form: str) -> None:
    name = {"Python": "mine.py", "YAML": "config.yaml", "JSON": "a.json"}.get(form, "sub/notes.txt")
    write(workplace, "small.yaml", content=EXPERIMENT)
    write(workplace, name, content=FORMS[form])
    with refused(ClusterError, file=name, says="private key") as caught:
        prepare(["run", "small.yaml"])
    assert caught.value.problems[0].line
    (workplace / name).write_text(FORMS[form], encoding="utf-16")
    with refused(ClusterError, file=name, says="private key"):
        prepare(["run", "small.yaml"])
    write(workplace, ".gitignore", content=f"/{name}\n")
    assert shipped(workplace) == ["small.yaml"]


def test_what_only_speaks_of_keys_is_none() -> None:
    assert not key_in(f"find `{BEGIN} PRIVATE KEY{END}` in files".encode())
    assert not key_in(PEM.replace("PRIVATE", "PUBLIC").encode())
    assert not key_in(f'assert text == "{BEGIN} PRIVATE KEY{END}\\nAAAA"'.encode())
    assert key_in(f"\n\n{PEM}".encode()) == 3


def test_the_project_itself_can_be_shipped() -> None:
    found = select(Path(shipped_from.__file__).parent.parent.parent)
    assert {"fedrobust/cli/__init__.py", "fedrobust/data/__init__.py", "fedrobust/py.typed", "pyproject.toml"} <= set(
        found.files
    )
    assert "experiments/quickstart.yaml" in found.files
    assert not found.left[shipped_from.SECRET]


@pytest.mark.parametrize("which", ["home", "above", "root", "link"])
def test_a_home_is_not_shipped(nobody: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(nobody, "small.yaml", content=EXPERIMENT)
    linked = nobody.parent / "linked"
    linked.symlink_to(nobody)
    place = {"home": nobody, "above": nobody.parent, "root": Path("/"), "link": linked}[which]
    monkeypatch.chdir(place)
    monkeypatch.setattr(shipped_from, "_listed", lambda folder: pytest.fail("it has been listed"))
    with refused(ClusterError, file=place.resolve(), says="home"):
        prepare(["run", str(nobody / "small.yaml")])
    linked.unlink()


def test_a_big_folder_is_refused_with_its_biggest_files(workplace: Path) -> None:
    write(workplace, "small.txt")
    (workplace / "weights.json").write_bytes(bytes(3_000_000))
    (workplace / "more.json").write_bytes(bytes(2_000_000))
    with (workplace / "sparse.txt").open("wb") as file:
        file.truncate(50_000)
    assert len(select(workplace, most=6_000_000).files) == 4
    with refused(ClusterError, file=workplace, says="5.1 MB") as caught:
        select(workplace, most=4_000_000)
    assert "weights.json (3.0 MB), more.json (2.0 MB), " in caught.value.problems[0].message


def test_nothing_is_submitted_where_the_folder_is_too_big(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace, "small.yaml", content=EXPERIMENT)
    with (workplace / "sparse.txt").open("wb") as file:
        file.truncate(10**12)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with Server() as server, refused(ClusterError, file=workplace, says="1000000.0 MB"):
        submit(["run", "small.yaml"], find_cluster(server.address))
    assert not server.packages


def test_odd_names_reach_neither_terminal_nor_package(workplace: Path) -> None:
    for number, name in enumerate(NAMES):
        with suppress(OSError, ValueError):  # what is no name of a file
            write(workplace, f"{number} {name.replace('/', '_')}.txt")
    write(workplace, "small.yaml", content=EXPERIMENT)
    found = prepare(["run", "small.yaml"]).selection
    assert len(found.files) > 10 and len(found.left[shipped_from.ODD]) > 4
    for line in (*found.summary(), *found.listing(), *found.files):
        assert visible(line) == line
        line.encode()


def test_names_that_are_no_text_stay(workplace: Path) -> None:
    write(workplace, "small.yaml", content=EXPERIMENT)
    for name in (b"line\nbreak.py", b"latin-\xe9.py", b"\x1b[31mred.py"):
        (workplace / os.fsdecode(name)).touch()
    found = prepare(["run", "small.yaml"]).selection
    assert list(found.files) == ["small.yaml"]
    assert len(found.left[shipped_from.ODD]) == 3
    (workplace / "small.yaml").rename(os.fsdecode(b"latin-\xe9.yaml"))
    with refused(ClusterError, file=os.fsdecode(b"latin-\xe9.yaml")):
        prepare(["run", os.fsdecode(b"latin-\xe9.yaml")])


@pytest.mark.parametrize(
    ("ignored", "files"),
    [
        ("small.yaml", ["own/small.yaml"]),
        ("own/", ["own/small.yaml"]),
        ("mine.py", ["own/small.yaml", "own/mine.py"]),
        ("base.yaml", ["own/small.yaml", "base.yaml"]),
        ("deep", ["base.yaml", "own/deep/er.py"]),
        ("tokens.py", ["own/small.yaml", "own/tokens.py"]),
    ],
)
@pytest.mark.parametrize("repository", [True, False])
def test_what_the_command_needs_must_be_shipped(
    workplace: Path, ignored: str, files: list[str], repository: bool
) -> None:
    write(workplace, "own/mine.py", "own/deep/er.py", "own/tokens.py", "er.py")
    write(
        workplace,
        "own/small.yaml",
        content="experiment: ../base.yaml  # and not other.yaml\nrule: {name: 'mine:Mine'}\n",
    )
    write(workplace, "base.yaml", content="attacks: [{name: own.deep.er:Attack}, {name: numpy:ndarray}]\n")
    write(workplace, "own/other.yaml")
    write(workplace, ".gitignore", content="other.yaml\n")
    if repository:
        git(workplace, "init", "--quiet")
    command = ["matrix", "own/small.yaml", "aggregation.rule=tokens:Rule"]
    assert len(prepare(command).selection.files) == 6
    write(workplace, ".gitignore", content=ignored)
    with refused(ClusterError, origins=tuple(Origin(Path(file)) for file in files), says="git ignores"):
        prepare(command)


@pytest.mark.parametrize("name", ["mlflow.py", "random.py", "numpy/__init__.py", "yaml/__init__.py"])
def test_no_module_hides_an_installed_one(workplace: Path, name: str) -> None:
    """It would run wherever that one is imported, though no class of it is named."""
    write(workplace, "own/small.yaml", content="rule: {name: 'mine:Mine'}\n")
    write(workplace, "own/mine.py", "utils.py", "own/mlflow.py", "numpy/inner.py", "fedrobust/__init__.py")
    prepare(["run", "own/small.yaml"])  # beside the file is the last place where a job looks
    write(workplace, name)
    with refused(ClusterError, file=name, says=f"module {name.split('/')[0].removesuffix('.py')}"):
        prepare(["run", "own/small.yaml"])


@pytest.mark.parametrize("name", ["tokens.yaml", ".hidden.yaml", "data/small.yaml", "link.yaml"])
def test_an_experiment_of_a_kind_that_stays_is_refused(workplace: Path, name: str) -> None:
    (workplace / "data").mkdir()
    if name == "link.yaml":
        (workplace / name).symlink_to("/etc/hostname")
    else:
        write(workplace, name, content=EXPERIMENT)
    with refused(ClusterError, file=name, says="not shipped"):
        prepare(["run", name])


def test_a_file_above_the_folder_is_not_reached(workplace: Path) -> None:
    write(workplace, "base.yaml", content=EXPERIMENT)
    write(workplace, "below/small.yaml", content="experiment: ../base.yaml")
    with refused(ClusterError, origins=(Origin(Path("small.yaml")), Origin(Path("../base.yaml"))), says="outside"):
        prepare(["matrix", "small.yaml"], workplace / "below")


def test_a_folder_that_is_a_link_is_what_it_leads_to(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace, "real/own/small.yaml", content=EXPERIMENT)
    (workplace / "linked").symlink_to("real")
    monkeypatch.chdir(workplace / "linked")
    assert prepare(["run", str(workplace / "linked" / "own" / "small.yaml")]).command == ["run", "own/small.yaml"]


def test_the_command_line_says_what_is_sent(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(workplace, "sub/mlruns/keys/coordinator.pem", "sub/id_rsa", ".env", "a.png", "b.png", content=PEM)
    write(workplace, "small.yaml", content=EXPERIMENT)
    write(workplace, "mine.py")

    def called(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fedrobust", "submit", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert called("--dry-run", "--", "run", "small.yaml") == 0
    out = capsys.readouterr().out
    assert "small.yaml" in out and "stays  sub/id_rsa (keys or credentials)" in out
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with Server() as server:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.address)
        assert called("--no-follow", "--", "run", "small.yaml") == 0
        err = capsys.readouterr().err.splitlines()
        assert err == [
            "sends 2 files, 65 B; the largest: small.yaml (59 B), mine.py (6 B)",
            "leaves here: keys or credentials 1 (sub/id_rsa); hidden files 1; results or caches 1; "
            "files of other kinds 2 (.png 2)",
            f"goes to {server.address}, with the token from RAY_AUTH_TOKEN",
        ]
        ((_, package),) = server.packages.items()
        assert zipfile.ZipFile(BytesIO(package)).namelist() == ["mine.py", "small.yaml"]
        write(workplace, "notes.txt", content=PEM)
        assert called("--no-follow", "--", "run", "small.yaml") == 2
        assert capsys.readouterr().err.startswith("error: notes.txt:1: ")
        assert len(server.submitted) == 1


PARTS = st.sampled_from(
    ["a", "data", "mlruns", ".b", "c.py", "d.yaml", "id_rsa", "e.png", "__init__.py", "e/pyvenv.cfg", "é\n.py"]
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), max_size=12))
def test_every_file_is_sent_or_stays_for_a_reason(names: list[str]) -> None:
    kept, left = sort_out(names)
    assert sorted([*kept, *(name for each in left.values() for name in each)]) == sorted(set(names))
    for name in kept:
        assert name.endswith((".py", ".yaml"))
        assert "mlruns" not in name.split("/") and not any(part.startswith(".") for part in name.split("/"))
