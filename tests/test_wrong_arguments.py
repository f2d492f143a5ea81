"""Arguments of a wrong type: one line, before anything is started or written."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import fedrobust
import fedrobust.preparation as preparation
from fedrobust.sessions import Session
from fedrobust.studies.teams import Teams
from tests.refused import refused

SMALL = fedrobust.Experiment()


@pytest.mark.parametrize("file", [None, 3, True, [], {}, b"e.yaml", "", ["e.yaml"], fedrobust.load, SMALL])
def test_no_file(file: Any) -> None:
    with refused(says="file"):
        fedrobust.load(file)


@pytest.mark.parametrize("value", [{"clip", "nnm"}, frozenset({"clip"}), {"clip": 1}.keys()])
def test_a_set_has_no_order(value: Any) -> None:
    with refused(path="aggregation.stages", says="list"):
        SMALL.changed({"aggregation.stages": value})
    with refused(path="aggregation.stages", says="list"):
        SMALL.changed({"aggregation": {"rule": "mean", "stages": value}})


def test_arrays_and_ranges_are_lists() -> None:
    attack = {"name": "sign_flip"}
    for clients in (np.arange(2), range(2), (0, 1)):
        assert SMALL.changed({"attacks": [{**attack, "clients": clients}]}).attacks[0].clients == (0, 1)


@pytest.mark.parametrize("resume", [3, True, ["a"], b"a", SMALL])
def test_a_run_is_resumed_by_its_id(resume: Any) -> None:
    with refused(path="resume", says="id"):
        fedrobust.run(SMALL, resume=resume)


@pytest.mark.timeout(60)
def test_what_a_study_calls_starts_no_run_in_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    session, calls = Session(), list[int]()
    monkeypatch.setattr(session, "_having", lambda *_: SimpleNamespace(teams=1))
    monkeypatch.setattr(preparation, "hospitals_of", lambda experiment: None)
    silent = lambda text: None  # noqa: E731

    def objective() -> None:
        calls.append(threading.get_ident())
        with session.for_run(SMALL, silent):
            pass

    with session.for_studies(silent, 1) as pool, Teams(silent, pool=pool) as teams, refused(says="session"):
        teams.each(SMALL, [objective])
    assert calls and threading.get_ident() not in calls
    with session.for_run(SMALL, silent), refused(says="session"):
        objective()
    objective()  # and afterwards it may


def test_completion_has_the_names_of_the_package() -> None:
    assert not {"Any", "TYPE_CHECKING"} & set(dir(fedrobust))
    assert set(fedrobust.__all__) <= set(dir(fedrobust))
