"""Timelines for tests, and a check of Chrome's trace format that shares no code with what writes it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from fedrobust.timeline import Recording, TimedStep, TimedSteps


def played(rounds: int = 3, actors: int = 2, host: str = "") -> Recording:
    """What the driver of a played run has recorded: rounds of 1, 2, … seconds, half of them training.

    host: that of the last client actor; by default the driver's own.
    """
    seen, begins = Recording(), 100.0
    own = seen.recorded()
    for number in range(1, rounds + 1):
        long, args = float(number), {"round": number}
        trained, ended = begins + long / 2, begins + long
        seen.steps += [
            TimedStep("journal", begins, begins + long / 10, {"round": number - 1}),
            TimedStep("wait for training", begins + long / 10, trained, args),
            TimedStep("wait for the aggregate", trained, ended - long / 10, args),
            TimedStep("round", begins, ended, args),
        ]
        crafted, received = trained + long / 10, trained + 2 * long / 10
        parts = [
            TimedStep("receive", crafted, received),
            TimedStep("aggregate", received, received + long / 20),
            TimedStep("round", crafted, received + long / 10, args),
        ]
        seen.others.append(("coordinator", TimedSteps(own.host, 7, own.clock, tuple(parts))))
        crafting = (TimedStep("craft", trained, trained + long / 20, args),)
        seen.others.append(("adversary", TimedSteps(own.host, 8, own.clock, crafting)))
        for actor in range(actors):
            work = [TimedStep("hospital", begins + 0.01, trained - 0.01, {"hospital": actor})]
            work += [TimedStep("train", begins, trained, args), TimedStep("evaluate", trained, ended - 0.01)]
            elsewhere = host if actor == actors - 1 and host else own.host
            seen.others.append((f"client actor {actor}", TimedSteps(elsewhere, 20 + actor, own.clock, tuple(work))))
        begins = ended
    return seen


def checked(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The complete events of a trace by the name of their thread, after a check of what viewers demand.

    Every thread has a name, every process has one, no duration is negative, every event of a thread lies within another
    one or beside it.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    assert set(found) == {"traceEvents", "displayTimeUnit", "otherData"} and found["displayTimeUnit"] in ("ms", "ns")
    threads, processes, events = {}, {}, defaultdict(list)
    for event in found["traceEvents"]:
        assert {"name", "ph", "pid", "tid", "args"} <= set(event), event
        assert event["ph"] in ("M", "X"), event
        if event["name"] == "thread_name" and event["ph"] == "M":
            threads[event["pid"], event["tid"]] = event["args"]["name"]
        elif event["name"] == "process_name" and event["ph"] == "M":
            processes[event["pid"]] = event["args"]["name"]
        elif event["ph"] == "X":
            assert type(event["ts"]) is int and type(event["dur"]) is int, event
            assert event["ts"] >= 0 and event["dur"] >= 0 and event["name"], event
            events[event["pid"], event["tid"]].append(event)
    assert set(events) <= set(threads) and {pid for pid, _ in threads} == set(processes)
    assert len(set(threads.values())) == len(threads)
    for own in events.values():
        own.sort(key=lambda event: (event["ts"], -event["dur"]))
        open_until: list[int] = []
        for event in own:
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            assert not open_until or event["ts"] + event["dur"] <= open_until[-1], f"{event} ends after what it is in"
            open_until.append(event["ts"] + event["dur"])
    return {name: events[place] for place, name in threads.items()}
