"""The benchmark scripts still run, on sizes too small to measure anything."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedrobust.data import Camelyon17
from fedrobust.secure.messages import OVERHEAD

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def script(monkeypatch, name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def aggregation(monkeypatch):
    return script(monkeypatch, "aggregation")


@pytest.fixture
def secure(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return script(monkeypatch, "secure")


@pytest.fixture
def metered(secure):
    return sys.modules["metered"]


def test_aggregation_measures_every_rule_against_its_goal(aggregation, tmp_path, capsys):
    sections = ["floor", "rules", "past", "rows", "byzfl", "passes"]
    place = tmp_path / "lines.json"
    lines = aggregation.main(["--sizes", "10x3e3", "--sections", *sections, "--repeat", "1", "--json", str(place)])
    by_name = {(line.section, line.name): line for line in lines}
    names = {line.name for line in lines}
    assert {aggregation.shown(*item) for item in aggregation.pipelines().items()} <= names
    assert not [line for line in lines if line.ratio is None and line.section != "floor"]
    krum = by_name["rules", "krum"]
    assert krum.goal == ("≤", 1.5)
    assert krum.verdict() == ("held" if krum.ratio <= 1.5 else "missed")
    assert by_name["byzfl", "NNM / nnm + mean"].ratio > 0
    assert {line.name for line in lines if line.section == "passes"} >= {"cpu: copy", "cpu: Gram pass"}
    assert len(json.loads(place.read_text())["lines"]) == len(lines)
    assert "goals held" in capsys.readouterr().out


def test_data_measures_decoding_against_a_loop_with_pillow(monkeypatch, tmp_path, capsys):
    data, place = script(monkeypatch, "data"), tmp_path / "figures.json"
    monkeypatch.setattr(data.pixels, "usable_cores", data.pixels.usable_cores)  # it is changed, and is put back
    arguments = ["--side", "16", "--sample", "40", "--times", "1", "--sections", "decoding", "--json", str(place)]
    figures = {figure.name: figure for figure in data.main(arguments)}
    assert len(json.loads(place.read_text())) == len(figures) == 16
    ratio = figures["96 pixels: ours, two threads / the loop, clock"]
    assert ratio.goal == ("≥", 1.5) and str(ratio).endswith("held" if ratio.value >= 1.5 else "missed")
    assert "of 3 goals held" in capsys.readouterr().out


def test_data_writes_what_the_source_reads(monkeypatch, tmp_path):
    data = script(monkeypatch, "data")
    files = data.made(tmp_path / "all", 120, 8)
    patches = Camelyon17(path=str(tmp_path / "all")).load(0)
    assert len(files) == len({*files}) == len(patches) == 120 and patches.size == 8
    assert {*np.unique(patches.split)} == {"train", "validation", "test"} and {*patches.labels} == {0, 1}
    assert data.made(tmp_path / "all", 120, 8) == files, "they are not written again"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux")
def test_data_counts_the_memory_of_a_process_and_of_those_below_it(monkeypatch):
    data = script(monkeypatch, "data")
    with subprocess.Popen([sys.executable, "-c", "held = bytes(1) * 2**26; input()"], stdin=subprocess.PIPE) as process:
        found = 0
        for _ in range(200):
            if (found := sum(map(data.proportional, data.below(process.pid)))) > 2**26:
                break
            time.sleep(0.1)
        assert process.pid in data.below(os.getpid()) and 2**26 < found < 2**27
        process.communicate(b"\n")
    assert data.proportional(process.pid) == 0


def test_aggregation_says_what_it_leaves_out(aggregation):
    lines = aggregation.main(["--sizes", "50x2e3", "--sections", "byzfl", "--repeat", "1", "--peer-memory", "0.001"])
    notes = {line.name: line.note for line in lines}
    assert "--peer-memory" in notes["NNM / nnm + mean"]
    assert {line.verdict() for line in lines if line.note.startswith("left out")} == {"–"}


@pytest.mark.long
def test_aggregation_measures_memory_in_a_process_of_its_own(aggregation):
    (line,) = aggregation.peak_lines(20, 400_000, ["krum"])
    assert 1.0 < line.ratio < 3.0, line


@pytest.mark.slow
def test_secure_measures_every_party_and_says_without_flower_that_it_is_left_out(secure, tmp_path, capsys):
    n, d, place = 10, 3000, tmp_path / "figures.json"
    lines, goals = secure.main(["--quick", "--json", str(place)])
    found = {(line.protocol, line.party): line for line in lines if line.cpu is not None}
    servers = {"shares": 2, "shares-exact": 2, "replicated": 3, "replicated-exact": 3}
    for protocol, count in servers.items():
        parties = {party for name, party in found if name == protocol}
        assert parties >= {"client", "coordinator", "all", *(f"server {k}" for k in range(count))}
    assert {party for name, party in found if name == "masked"} == {"client", "server", "all"}
    assert ("shares", "dealer") in found
    assert found["shares", "client"].sent == 8 * d + 32 + 2 * OVERHEAD
    assert found["shares-exact", "server 0"].sent > 8 * n * d, "the differences of all columns go to the other server"
    assert found["shares", "server 0"].sent < 8 * n * d, "those of the sketches do"
    assert found["replicated", "server 0"].received < found["replicated", "server 1"].received
    assert all(line.cpu > 0 for line in found.values())
    flower = [line for line in lines if line.protocol in ("flower", "full")]
    if importlib.util.find_spec("flwr") is None:
        assert [line.note for line in flower] == ["left out: No module named 'flwr'"] * 2
    else:
        assert {line.party for line in flower} == {"client", "server", "all"}
    upload = next(goal for goal in goals if "upload" in goal.name)
    assert upload.met and (upload.value, upload.bound) == (8 * d + 32, 8 * d + 32)
    (memory,) = (goal for goal in goals if "memory" in goal.name)
    assert memory.value > 0 and memory.bound == 8 * n * d + 256 * 2**20
    assert len(json.loads(place.read_text())["goals"]) == len(goals)
    printed = capsys.readouterr().out
    assert printed.count("PASS") + printed.count("MISS") == len(goals)


def test_secure_leaves_out_what_is_too_large(secure):
    sizes = ["--sizes", "10x3e3", "10x1e5", "20x3e3", "--protocols", "shares", "--repeat", "1"]
    lines, goals = secure.main([*sizes, "--memory", "0.01", "--seconds", "1e-6"])
    notes = {(line.n, line.d): line.note for line in lines if line.cpu is None}
    assert "--memory 0.01" in notes[10, 100_000]
    assert "--seconds 1e-06" in notes[20, 3000]
    assert (10, 3000) not in notes and not goals


def test_a_goal_that_is_missed_is_called_missed(secure):
    assert str(secure.Goal("a client", 11.0, "≤", 10.0, "ms")).startswith("MISS")
    assert str(secure.Goal("ratio", 5.0, "≥", 5.0, "×")).startswith("PASS")


def test_a_wrong_result_stops_the_benchmark(metered):
    with pytest.raises(RuntimeError, match="clear"):
        metered.check(np.array([1.0, 2.001]), np.array([1.0, 2.0]))


def test_who_calls_another_party_is_not_charged_for_it(metered, monkeypatch):
    now = iter([0.0, 3.0, 8.0, 10.0])  # one second of the CPU in two of the clock
    times = {"process_time": lambda: next(now) / 2, "perf_counter": lambda: 0.0}
    monkeypatch.setattr(metered, "time", SimpleNamespace(**times))
    meter = metered.Meter()
    with meter.of("one", "asks"), meter.of("other", "answers"):
        pass
    assert meter.seconds("one").tolist() == [2.5, 0.0]
    assert meter.seconds("other").tolist() == [2.5, 0.0]
    meter.carry(7, "one", ["other", "third"])
    assert (meter.sent["one"], meter.received["other"], meter.received["third"]) == (14, 7, 7)


@pytest.mark.long
def test_sketches_are_compared_by_attack_and_what_is_finished_is_kept(monkeypatch, tmp_path, capsys):
    sketches = script(monkeypatch, "sketches")
    monkeypatch.setattr(sketches, "DEFENCES", dict(list(sketches.DEFENCES.items())[2:3]))
    monkeypatch.setattr(sketches, "COLUMNS", {"exact": None, "128": 128})
    kept = tmp_path / "kept.jsonl"
    for runs in (4, 0):
        sketches.main(["--quick", "--kept", str(kept)])
        printed = capsys.readouterr().out
        assert len(kept.read_text().splitlines()) == 4 and printed.count("'run'") == runs
    assert "| alie 1.5, 20% | 0." in printed and "| 128 | " in printed
    assert all(0.3 < json.loads(line)["accuracy"] < 1 for line in kept.read_text().splitlines())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_leaks_are_measured_with_and_without_a_sketch(monkeypatch, capsys):
    leakage = script(monkeypatch, "leakage")
    monkeypatch.setattr(leakage, "COLLUDERS", (0, 5))
    leakage.main(["--quick"])
    printed = capsys.readouterr().out
    for title in ("G of the updates:", "G of sketches of 512 columns:", "G of sketches of 128 columns:"):
        assert title in printed
    exact, *blurred = [line for line in printed.splitlines() if line.startswith("| a coordinate |")]
    errors = [float(line.split("|")[4]) for line in (exact, *blurred)]
    assert errors[0] < 1e-8 and min(errors[1:]) > 1e-5
    assert printed.count("none: no product with them is opened | | | | 15 of 15") == 3


@pytest.mark.long
def test_a_sweep_is_measured_beside_the_same_trials_in_bare_processes(monkeypatch, ray_local, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    place = tmp_path / "figures.json"
    figures = importlib.import_module("sweep").main(["--trials", "2", "--repeat", "1", "--json", str(place)])
    written = json.loads(place.read_text())
    assert written["ratio"] == figures["ratio"] == written["bare"][0]["seconds"] / written["sweep"][0]["seconds"]
    assert 0 < figures["tracking"] < 1
    assert figures["overhead"] > 0
    assert "throughput" in capsys.readouterr().out


def test_peers_take_turns_and_what_is_not_installed_is_left_out(monkeypatch, capsys):
    peers, asked = script(monkeypatch, "peers"), []

    def measured(side, rounds):
        asked.append((side, rounds))
        return [{"ours": 0.5, "flower": 1.0}[side]] * rounds

    monkeypatch.setattr(peers, "measured", measured)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda package: package != "pfl" or None)
    monkeypatch.setattr(peers, "version", lambda package: "0")
    monkeypatch.setattr(sys, "argv", ["peers.py", "--rounds", "4", "--turns", "2"])
    peers.main()
    assert asked == [("ours", 4), ("flower", 4)] * 2
    printed = capsys.readouterr().out
    assert "pfl is left out" in printed
    assert "Flower at least 1.8 x ours: 2.00, held" in printed


def test_the_start_is_held_against_the_floor(monkeypatch, tmp_path, capsys):
    """With times that are made up: the medians, their ratios, and which goals they hold."""
    start, took = script(monkeypatch, "start"), iter([10.0, 12.0, 11.0])
    monkeypatch.setattr(start, "finished", lambda words: next(took))
    monkeypatch.setattr(start, "command", lambda folder: (15.0, 22.0))
    monkeypatch.setattr(start, "in_one_process", lambda folder, session: [(15.0, 22.0), (11.0, 14.0), (13.0, 15.0)])
    start.compare(3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[0] for line in lines[:3]] == ["1: floor 10.0 s", "2: floor 12.0 s", "3: floor 11.0 s"]
    told = {line[:42].strip(): line[42:].split() for line in lines[5:]}
    assert told["floor"] == ["11.0", "s", "1.00"]
    assert told["first round"] == ["15.0", "s", "1.36", "goal", "≤", "1.5:", "held"]
    assert told["whole command"][2:] == ["2.00", "goal", "≤", "1.8:", "missed"]
    assert told["first round, second run in a process"][:3] == ["12.0", "s", "1.09"]
    assert set(start.GOALS) <= set(told)


def test_the_cpu_seconds_are_those_of_a_process_and_of_all_below_it(monkeypatch):
    start = script(monkeypatch, "start")
    below = [sys.executable, "-c", "sum(range(10**7)); input()", "ray::Coordinator"]
    with subprocess.Popen(below, stdin=subprocess.PIPE) as process:
        for _ in range(600):
            found = start.spent(os.getpid())
            if found.get(process.pid, ("", 0.0))[1] > 0.05:
                break
            time.sleep(0.05)
        process.communicate(b"\n")
    assert found[process.pid][0] == "Coordinator"
    assert found[process.pid][1] > 0.05 and found[os.getpid()][1] > 0


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("ray::ClientHost.train", "ClientHost"),
        ("/usr/bin/python -m fedrobust run ../tiny.yaml", "driver"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=x", "Ray's own"),
        ("/usr/bin/git rev-parse HEAD", "git"),
    ],
)
def test_processes_are_called_what_they_are(monkeypatch, words, kind):
    start = script(monkeypatch, "start")
    monkeypatch.setattr(Path, "read_bytes", lambda path: words.replace(" ", "\0").encode())
    assert start.kind_of(1) == kind
