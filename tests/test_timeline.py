"""Timelines: recorded only if wanted, on one clock, as a file that viewers open, as a picture and as a table."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reported import journal, recorded, write
from rich.console import Console
from traced import checked, played

from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.federation.adversary import Adversary, Outlook
from fedrobust.federation.clients import STEPS, ClientHost, Training
from fedrobust.federation.coordinator import Coordinator
from fedrobust.federation.layout import Layout
from fedrobust.records.trace import TRACE, read_trace, trace_of, traced, write_trace
from fedrobust.report import make_figures, write_report
from fedrobust.terminal import show_profile
from fedrobust.timeline import Recording, TimedStep, TimedSteps, arrived, happened, recording, step

pytestmark = pytest.mark.slow


def test_nothing_is_recorded_unless_it_is_wanted() -> None:
    with recording(None), step("a"):
        happened("b", 0, 1)
        arrived("other", Recording().recorded())
    seen = Recording()
    with step("before"):
        pass
    with recording(seen), step("a", round=1):
        with step("b"):
            pass
        thread = threading.Thread(target=lambda: step("elsewhere").__enter__())
        thread.start()
        thread.join()
    assert [(each.name, each.args) for each in seen.steps] == [("b", {}), ("a", {"round": 1})]
    inner, outer = seen.steps
    assert outer.start <= inner.start <= inner.end <= outer.end and not seen.others


def test_a_step_that_fails_is_recorded_too() -> None:
    seen = Recording()
    with pytest.raises(ValueError, match="x"), recording(seen), step("fails"):
        raise ValueError("x")
    assert [each.name for each in seen.steps] == ["fails"]


def test_the_file_is_one_that_viewers_open(tmp_path: Path) -> None:
    sending = Recording(steps=[TimedStep("send", 100.2, 100.3)])
    write_trace(tmp_path / TRACE, trace_of(played(), sending), {"run": "0123"})
    lanes = checked(tmp_path / TRACE)
    assert list(lanes) == ["driver", "client actor 0", "client actor 1", "adversary", "coordinator", "MLflow"]
    assert [event["args"]["round"] for event in lanes["driver"] if event["name"] == "round"] == [1, 2, 3]
    assert lanes["MLflow"][0]["ts"] == 200_000 and lanes["MLflow"][0]["dur"] == 100_000
    assert json.loads((tmp_path / TRACE).read_text())["otherData"]["run"] == "0123"
    assert not list(tmp_path.glob("*.partial"))


def test_a_timeline_read_again_is_the_same(tmp_path: Path) -> None:
    trace = trace_of(played(rounds=4))
    write_trace(tmp_path / TRACE, trace, {})
    found = read_trace(tmp_path / TRACE)
    assert [lane.name for lane in found.lanes] == [lane.name for lane in trace.lanes] and found.hosts == 1
    for one, other in zip(found.lanes, trace.lanes, strict=True):
        assert [(each.name, each.args) for each in one.steps] == [(each.name, each.args) for each in other.steps]
        starts = [[each.start for each in lane.steps] for lane in (one, other)]
        np.testing.assert_allclose(*starts, atol=1e-6)


def test_processes_of_other_hosts_are_placed_by_their_time_of_day(tmp_path: Path) -> None:
    seen = Recording(steps=[TimedStep("round", 10.0, 20.0, {"round": 1})])
    own = seen.recorded()
    for host, process, clock, start in ((own.host, 1, own.clock + 5, 11.0), ("other", 2, own.clock + 1000, -989.0)):
        steps = (TimedStep("train", start, start + 2.0),)
        seen.others.append((f"client actor {process}", TimedSteps(host, process, clock, steps)))
    trace = trace_of(seen)
    found = {lane.name.partition(" on ")[0]: lane.steps[0].start for lane in trace.lanes}
    assert found == pytest.approx({"driver": 0.0, "client actor 1": 1.0, "client actor 2": 1.0})
    assert trace.hosts == 2 and all(" on host " in lane.name for lane in trace.lanes[1:])
    write_trace(tmp_path / TRACE, trace, {})
    assert "only as well as their clocks" in (tmp_path / TRACE).read_text()
    write_trace(write(tmp_path, journal()) / TRACE, trace, {})
    assert "The processes of 2 hosts are aligned only" in write_report(tmp_path).read_text()


def test_an_actor_that_was_replaced_has_a_lane_of_its_own() -> None:
    seen = played(actors=1)
    own = seen.recorded()
    for process in (31, 32):
        again = TimedSteps(own.host, process, own.clock, (TimedStep("train", 105.0, 105.5),))
        seen.others.append(("client actor 0", again))
    names = [lane.name for lane in trace_of(seen).lanes]
    assert names[1:4] == ["client actor 0", "client actor 0, restarted", "client actor 0, restarted 2 times"]


def test_the_shares_are_those_of_the_median_round_and_make_it_up() -> None:
    trace = trace_of(played(rounds=4))  # of the rounds after the first: 2, 3 and 4 s
    whole = trace.median_round
    assert whole is not None and whole.args["round"] == 3
    shares = trace.shares()
    assert sum(shares.values()) == pytest.approx(3.0)
    assert shares["journal"] == pytest.approx(0.3) and shares["wait for training"] == pytest.approx(1.2)
    assert shares["coordinator: receive"] == pytest.approx(0.3)
    assert [shares[f"coordinator: {name}"] for name in ("aggregate", "other")] == pytest.approx([0.15, 0.15])
    assert shares["adversary"] == pytest.approx(0.15)
    assert shares["messages"] == pytest.approx(1.2 - 0.6 - 0.15) and shares["other"] == pytest.approx(0.3)
    one = trace_of(played(rounds=1)).median_round
    assert one is not None and one.args["round"] == 1
    assert trace_of(Recording()).median_round is None and trace_of(Recording()).shares() == {}


def test_the_report_shows_it_and_the_terminal_too(tmp_path: Path) -> None:
    write_trace(write(tmp_path, journal()) / TRACE, trace_of(played()), {})
    text = write_report(tmp_path).read_text()
    assert (tmp_path / "figures/timeline.png").exists() and 'id="timeline"' in text
    assert "<td>wait for training</td><td>0.800 s</td><td>40.0%</td>" in text and "trace.json" in text
    out = Console(record=True, width=100)
    show_profile(out, tmp_path)
    shown = " ".join(out.export_text().split())
    assert "round 2, the median: 2.00 s" in shown and "0.800 s │ 40.0%" in shown and "Perfetto" in shown
    (tmp_path / TRACE).unlink()
    assert 'id="timeline"' not in write_report(tmp_path).read_text()
    assert not (tmp_path / "figures/timeline.png").exists()
    show_profile(out, tmp_path)
    assert out.export_text() == ""


def test_the_picture_has_a_row_for_each_process_and_of_many_for_the_busiest() -> None:
    for actors, rows in ((2, 5), (40, 16)):
        axes = make_figures(recorded(journal()), trace=trace_of(played(actors=actors)))["timeline"].axes[0]
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert len(labels) == rows and labels[0] == "driver" and "client actor 0" in labels
        assert axes.get_xlim() == pytest.approx((0, 2.0))
        within = [each for each in axes.patches if each.get_y() > 0.4 and each.get_y() < 1]
        assert len(within) == 2  # train and evaluate: the hospitals are in the file


def test_a_timeline_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="the run"), traced(tmp_path / "none" / TRACE, True, {}):
        raise ValueError("the run")
    assert "the timeline could not be written" in caplog.text
    with traced(tmp_path / TRACE, True, {}) as sending, recording(sending), step("send"):
        pass
    assert list(checked(tmp_path / TRACE)) == ["driver", "MLflow"]
    with traced(tmp_path / TRACE, False, {}) as sending:
        assert sending is None and not (tmp_path / TRACE).exists()


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda event: event.pop(key)


DAMAGED: dict[str, Any] = {
    "no JSON": b"\xff{",
    "a list": b"[1]",
    "nothing in it": b"{}",
    "an event without a phase": without("ph"),
    "a duration below zero": lambda event: event.update(dur=-1),
    "a start that is no number": lambda event: event.update(ts="soon"),
    "a start beyond all time": lambda event: event.update(ts=2**60),
    "a name of megabytes": lambda event: event.update(name="x" * 10**6),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_timeline_costs_only_the_picture(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, journal()) / TRACE
    write_trace(path, trace_of(played()), {})
    if isinstance(change := DAMAGED[damage], bytes):
        path.write_bytes(change)
    else:
        found = json.loads(path.read_text())
        change(next(event for event in found["traceEvents"] if event["ph"] == "X"))
        path.write_text(json.dumps(found))
    with pytest.raises(ExperimentError, match=r"trace\.json: no timeline of a run"):
        read_trace(path)
    with caplog.at_level(logging.WARNING):
        assert 'id="timeline"' not in write_report(tmp_path).read_text()
    assert "the report has no timeline" in caplog.text


ATTACK = {"attacks": [{"name": "ipm", "clients": [2]}]}


def profiled(profile: bool) -> Experiment:
    learning = {"model": {"name": "cnn", "channels": [4]}, "local": {"steps": 1}}
    options = {"federation": {"clients": 4}, "tracking": {"profile": profile}, "learning": learning}
    return Experiment.model_validate(options | ATTACK)


def test_the_option_changes_no_digest() -> None:
    assert profiled(True).digest() == profiled(False).digest()


@pytest.mark.parametrize("profile", [True, False])
def test_actors_return_their_steps_only_if_asked(profile: bool) -> None:
    experiment, rows = profiled(profile), np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32)
    samples = np.full(4, 10)
    coordinator, adversary = Coordinator(), Adversary()
    coordinator.setup(experiment, samples, np.zeros(50, dtype=np.float32), {})
    record, _, _ = coordinator.aggregate(1, [range(4)], [2], None, rows)
    adversary.setup(experiment, samples, [])
    crafted = adversary.replace(1, [range(4)], [2], [slice(0, 50)], Outlook(), None, rows)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    host = ClientHost(1, "cpu")
    host.setup(experiment, Layout(tuple(np.arange(40).reshape(4, 10)), np.arange(10), np.arange(10), 2),
                   np.arange(40) % 2, images)  # fmt: skip
    d = len(host.initial_weights())
    *_, training = host.train(1, [0, 1], [], host.initial_weights(), {}, [0, 1], None, [slice(0, d)])
    evaluated = host.evaluate(host.initial_weights(), 0, 1)
    assert isinstance(training, Training)
    if not profile:
        assert STEPS not in record and isinstance(crafted, np.ndarray) and training.steps is None
        assert set(evaluated) == {"clean"}
        return
    assert [each.name for each in record[STEPS].steps] == [
        *("receive", "Gram matrix", "scores", "weights", "aggregate", "server step", "round")
    ]
    assert isinstance(crafted, tuple) and len(crafted) == 2
    assert [each.name for each in crafted[1].steps][-1] == "craft"
    assert training.steps is not None
    assert [(each.name, each.args) for each in training.steps.steps] == [
        *(("hospital", {"hospital": 0}), ("hospital", {"hospital": 1}), ("train", {"round": 1}))
    ]
    assert [each.name for each in evaluated[STEPS].steps] == ["evaluate"]
