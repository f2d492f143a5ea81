"""Working folders of jobs: files that must stay, files that may be sent, and git."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fedrobust.cluster.folder import select

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
