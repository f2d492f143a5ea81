"""A cluster of three nodes on this machine: `make cluster`, `make cluster-down`.

One head with the jobs server and two workers, each a `ray start` in a session of its own, and an MLflow server. Ports
are free ones, the token is new, and nothing is shared with another Ray on the machine. What was started, and the token,
are kept below `~/.fedrobust/clusters`, and not in the folder, which may be somebody else's; `down` and `kill` end these
processes, known by number and time of start, and no others. All that is written is its owner's alone, and nothing
secret stands on a command line, which everyone can read.

    python cluster/local.py up [--workers 2] [--cpus 2] [--mlflow-store URL]
    python cluster/local.py status
    python cluster/local.py kill worker-1
    python cluster/local.py revive worker-1
    python cluster/local.py down
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fedrobust.cluster.links import runs_page
from fedrobust.cluster.local_state import STATE, TOKEN, Process, State, kept, read_state, runs
from fedrobust.databases import sqlite_url
from fedrobust.errors import ClusterError
from fedrobust.private import private_folder

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "mlruns" / "cluster"
HOST = "127.0.0.1"
PATIENCE = 120.0
"""Seconds within which a server must answer."""
ATTEMPTS = 3
"""How often a worker is started."""
GRACE = 15.0
"""Seconds that a node has to end by itself."""
STORE = "MLFLOW_BACKEND_STORE_URI"
"""Where `mlflow server` looks for its database: an environment is its owner's, a command line is everyone's."""
LONGEST_ROOT = 24
"""Bytes in the path of a folder for temporary files in which the sockets of the nodes find room; else `/tmp`."""
ASK = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks servers of this machine: no proxy may see the token."""


def main() -> None:
    """Do what the command line says; what cannot be done is one line, and exit code 2."""
    try:
        run()
    except (ClusterError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="A Ray cluster of several nodes on this machine.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where its logs lie")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start it")
    up.add_argument("--workers", type=int, default=2, help="nodes beside the head")
    up.add_argument("--cpus", type=int, default=2, help="logical cores of each worker; the head has none")
    up.add_argument(
        "--mlflow-store",
        metavar="URL",
        help=f"database of MLflow, e.g. postgresql://host/mlflow; one with a password is given in {STORE}",
    )
    up.add_argument("--workplace", type=Path, default=REPOSITORY, help="folder below which jobs keep their mlruns/")
    verbs.add_parser("status", help="say which of its processes are alive")
    kill = verbs.add_parser("kill", help="end a node as a power cut would")
    kill.add_argument("node", help="its name, e.g. worker-1")
    revive = verbs.add_parser("revive", help="start a node again that has ended")
    revive.add_argument("node", help="its name")
    verbs.add_parser("down", help="end all that `up` has started")
    given = parser.parse_args()
    folder = given.folder.resolve()
    os.umask(0o077)  # also of all that is started
    if given.verb == "up":
        store = given.mlflow_store
        if store and password_of(store):
            sys.exit(f"error: --mlflow-store: everyone can read a password on a command line; give the URL in {STORE}")
        start(folder, given.workers, given.cpus, store or os.environ.get(STORE), given.workplace.resolve())
    elif given.verb == "status":
        status(folder)
    elif given.verb == "kill":
        kill_node(folder, given.node)
    elif given.verb == "revive":
        revive_node(folder, given.node)
    else:
        stop(folder)


def start(folder: Path, workers: int, cpus: int, store: str | None, workplace: Path) -> None:
    """Start head, workers and MLflow, and say how they are used. Ends what it has started where that fails."""
    before = read_state(folder)
    if before and any(alive(process) for process in here(before).nodes.values()):
        sys.exit(f"error: a cluster of {folder} is running; end it with: make cluster-down")
    stop(folder)
    for name in ("logs", "mlflow.db", "artifacts"):
        if (folder / name).is_symlink():
            raise ClusterError(f"{folder / name} is a link: what is written there would go elsewhere; remove it")
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # it may be there already
    token = kept(folder) / TOKEN
    private_folder(token.parent)
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    root = tempfile.gettempdir()
    temporary = Path(
        tempfile.mkdtemp(prefix="fedrobust-", dir=root if len(os.fsencode(root)) <= LONGEST_ROOT else "/tmp")
    )
    gcs, jobs, tracking = free_ports(3)
    state = State(
        temporary=str(temporary),
        address=f"http://{HOST}:{jobs}",
        gcs=f"{HOST}:{gcs}",
        mlflow=f"http://{HOST}:{tracking}",
        workplace=str(workplace),
        store=store or sqlite_url(folder / "mlflow.db"),
    )
    write(folder, state)
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    ray += ["--node-ip-address", HOST, "--object-store-memory", "200000000"]
    ray += ["--dashboard-agent-listen-port", "0", "--min-worker-port", "0", "--max-worker-port", "0"]
    head = ["--head", "--num-cpus", "0", "--port", str(gcs), "--ray-client-server-port", str(free_ports(1)[0])]
    head += ["--dashboard-host", HOST, "--dashboard-port", str(jobs)]

    def launch(name: str, command: Sequence[str]) -> None:
        # Nodes that shared a folder would unpack the files of a job over each other's.
        own = [] if name == "mlflow" else ["--temp-dir", str(temporary / name.replace("worker-", "w"))]
        state.commands[name] = [*command, *own]
        spawn(folder, state, name)

    try:
        launch("mlflow", mlflow_server(tracking, folder))
        launch("head", [*ray, *head])
        await_answer(f"{state.address}/api/version", "the head", state.nodes["head"], folder, token)
        commands = {
            f"worker-{number}": [*ray, "--address", state.gcs, "--num-cpus", str(cpus), *own_resource(number)]
            for number in range(1, workers + 1)
        }
        for name, command in commands.items():
            launch(name, command)
        tries = dict.fromkeys(commands, 1)

        def joined() -> bool:
            for name, command in commands.items():
                if alive(state.nodes[name]):
                    continue
                if tries[name] == ATTEMPTS:
                    sys.exit(f"error: {name} has ended {ATTEMPTS} times; see {folder / 'logs'}")
                tries[name] += 1
                launch(name, command)  # on a busy machine a node may give its start up
            return nodes_of(state.address, token) == workers + 1

        if not within(PATIENCE, joined):
            sys.exit(f"error: not all nodes have joined the cluster; see {folder / 'logs'}")
        await_answer(f"{state.mlflow}/health", "MLflow", state.nodes["mlflow"], folder)
    except BaseException:
        stop(folder)
        raise
    exports = {
        "RAY_API_SERVER_ADDRESS": state.address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "MLFLOW_TRACKING_URI": state.mlflow,
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
    (folder / "env").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    print(
        f"a head and {workers} workers of {cpus} cores: {state.address}\nMLflow: {runs_page(state.mlflow)}\n"
        f"\n{chr(10).join(lines)}\n\nuse it:\n"
        f"  source {shown}/env\n"
        "  fedrobust submit -- run experiments/quickstart.yaml\n"
        "end it:\n"
        "  make cluster-down"
    )


def node_environment(folder: Path, state: State) -> dict[str, str]:
    """What every node is started with; jobs inherit it, also that `python` is the one that runs this file."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    return own | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "FEDROBUST_HOME": state.workplace,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_TRACKING_URI": state.mlflow,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(kept(folder) / TOKEN),
    }


def mlflow_server(port: int, folder: Path) -> list[str]:
    """The command of an MLflow server whose artifacts lie in the folder; its environment names the database of runs."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    return [*command, "--artifacts-destination", (folder / "artifacts").absolute().as_uri()]


def password_of(url: str) -> str:
    """The password in the URL of a database, wherever it stands; empty without one."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise ClusterError(f"--mlflow-store: this is no URL of a database: {error}") from None
    return parts.password or urllib.parse.parse_qs(parts.query).get("password", [""])[0]


def spawn(folder: Path, state: State, name: str) -> None:
    """Start a node in a session of its own, and keep its number."""
    environment = node_environment(folder, state)
    if name == "mlflow":
        del environment["MLFLOW_TRACKING_URI"]
        environment[STORE] = state.store
    log = folder / "logs" / f"{name}.log"
    log.unlink(missing_ok=True)  # it may be a link
    with log.open("x", encoding="utf-8") as output:
        started = subprocess.Popen(
            state.commands[name],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    known = table()
    if started.pid not in known:
        sys.exit(f"error: {name} has ended at once; see {folder / 'logs'}")
    state.nodes[name] = Process(pid=started.pid, began=known[started.pid][2])
    write(folder, state)


def await_answer(url: str, what: str, process: Process, folder: Path, token: Path | None = None) -> None:
    """Wait until `url` answers; the end of the process, or too long a wait, ends this one."""
    request = urllib.request.Request(url, headers=bearer(token))

    def answers() -> bool:
        if not alive(process):
            sys.exit(f"error: {what} has ended; see {folder / 'logs'}")
        try:
            with ASK.open(request, timeout=5):
                return True
        except OSError:
            return False

    if not within(PATIENCE, answers):
        sys.exit(f"error: {what} does not answer at {url}; see {folder / 'logs'}")


def own_resource(number: int) -> list[str]:
    """A resource that only this worker has, so that the parties of a protocol can be pinned to it."""
    return ["--resources", json.dumps({f"worker-{number}": 1})]


def nodes_of(address: str, token: Path) -> int:
    """How many nodes of the cluster are alive."""
    request = urllib.request.Request(f"{address}/api/v0/nodes", headers=bearer(token))
    try:
        with ASK.open(request, timeout=10) as answer:
            return sum(node["state"] == "ALIVE" for node in json.load(answer)["data"]["result"]["result"])
    except OSError:
        return 0


def bearer(token: Path | None) -> dict[str, str]:
    """What a request carries."""
    return {} if token is None else {"Authorization": f"Bearer {token.read_text(encoding='utf-8')}"}


def kill_node(folder: Path, name: str) -> None:
    """End every process of a node at once, without a chance to say goodbye."""
    state = read_state(folder)
    nodes = here(state).nodes if state else {}
    if name not in nodes:
        sys.exit(f"error: there is no node {name}; there are: {', '.join(nodes) or 'none'}")
    if not alive(nodes[name]):
        sys.exit(f"error: {name} has ended before")
    end([nodes[name]], signal.SIGKILL)
    print(f"{name} is dead")


def revive_node(folder: Path, name: str) -> None:
    """Start a node that has ended again, as a cluster's manager would, and wait until it has joined."""
    state = read_state(folder)
    if state is None or name not in here(state).nodes.keys() & state.commands.keys() or alive(state.nodes[name]):
        sys.exit(f"error: {name} is no node that has ended; see: python cluster/local.py status")
    token = kept(folder) / TOKEN
    before = nodes_of(state.address, token)
    spawn(folder, state, name)
    if not within(PATIENCE, lambda: nodes_of(state.address, token) > before):
        sys.exit(f"error: {name} has not joined the cluster; see {folder / 'logs'}")
    print(f"{name} has joined the cluster")


def here(state: State) -> State:
    """The same, if its processes are this machine's. Raises `ClusterError`: numbers mean others elsewhere."""
    if state.host != platform.node():
        raise ClusterError(
            f"the cluster was started on {state.host}: end it there, or, if that is gone, delete what is kept of it "
            "below ~/.fedrobust/clusters"
        )
    return state


def stop(folder: Path) -> None:
    """End all that `start` has started; of what has ended before, nothing is touched."""
    state = read_state(folder)
    nodes = [process for process in here(state).nodes.values() if alive(process)] if state else []
    end(nodes, signal.SIGTERM)
    if state:
        shutil.rmtree(state.temporary, ignore_errors=True)
    shutil.rmtree(kept(folder), ignore_errors=True)
    (folder / "env").unlink(missing_ok=True)
    if state:
        print(f"{len(nodes)} processes and what they had started have ended")


def end(leaders: Sequence[Process], how: signal.Signals) -> None:
    """Signal the leaders, and kill what is left of their families after some time."""
    if not leaders:
        return
    family = {leader.pid: leader.began for leader in leaders}
    if how != signal.SIGKILL:
        send(family, how)

        def ended() -> bool:
            grow(family)
            return not still(family)

        within(GRACE, ended)
    for _ in range(3):  # who was starting another process meanwhile
        grow(family)
        send(family, signal.SIGKILL)
        time.sleep(0.2)


def send(processes: dict[int, str], how: signal.Signals) -> None:
    """Signal those that are still the same processes."""
    for pid in still(processes):
        with suppress(ProcessLookupError):
            os.kill(pid, how)


def grow(family: dict[int, str]) -> None:
    """Add the descendants of the family's members, and who is in a session of theirs."""
    known = table()
    present = {pid for pid, began in family.items() if pid in known and known[pid][2] == began}
    while True:
        sessions = {known[pid][1] for pid in present}
        more = {pid for pid, (parent, session, _) in known.items() if parent in present or session in sessions}
        if more <= present:
            break
        present |= more
    own = os.getpid()
    family.update({pid: known[pid][2] for pid in present if pid != own})


def table() -> dict[int, tuple[int, int, str]]:
    """Every process of ours: parent, session, time of its start; without zombies."""
    command = ["ps", "-eo", "uid=,pid=,ppid=,sess=,stat=,lstart="]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = [line.split(maxsplit=5) for line in shown.stdout.splitlines()]
    return {
        int(pid): (int(parent), int(session), began)
        for uid, pid, parent, session, state, began in lines
        if uid == str(os.geteuid()) and not state.startswith("Z")
    }


def still(processes: dict[int, str]) -> list[int]:
    """Which of them, by number and time of start, are running."""
    known = table()
    return [pid for pid, began in processes.items() if pid in known and known[pid][2] == began]


def alive(process: Process) -> bool:
    """Whether this very process still runs."""
    return runs(process)


def status(folder: Path) -> None:
    """Print which processes are alive."""
    state = read_state(folder)
    if not state:
        sys.exit("no cluster has been started; start one with: make cluster")
    for name, process in here(state).nodes.items():
        print(f"{name:10} {'alive' if alive(process) else 'dead':6} process {process.pid}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def within(seconds: float, done: Callable[[], bool]) -> bool:
    """Whether `done` becomes true in time."""
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            return False
        time.sleep(0.3)
    return True


def write(folder: Path, state: State) -> None:
    """Keep what was started, after each start: whatever interrupts this one, `down` finds it."""
    new = kept(folder) / f"{STATE}.new"
    new.touch(mode=0o600)
    new.write_text(state.model_dump_json(indent=2) + "\n", encoding="utf-8")
    new.replace(kept(folder) / STATE)


if __name__ == "__main__":
    main()
