"""Errors that ended a run: whether they would also end other runs, and how they are reported."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from fedrobust.errors import FedRobustError
from fedrobust.job import as_typed
from fedrobust.texts import visible

_EVERYWHERE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""Error numbers of the operating system that the next run would meet, too: a full disk, too many open files."""
_LONGEST = 1000
"""Maximum length of a reason, in characters."""


def ends_all(error: BaseException) -> bool:
    """Return whether `error`, which ended a run, would end all other runs of a study: a Ctrl-C, no server, a full disk.

    All other errors concern this run alone, whatever raised them: its options, its data, a user's class.
    """
    return any(
        not isinstance(each, Exception | SystemExit)
        or (isinstance(each, FedRobustError) and each.everywhere)
        or (isinstance(each, OSError) and each.errno in _EVERYWHERE)
        for each in _causes(error)
    )


def reason(error: BaseException) -> str:
    """Describe in one visible line the error that ended a run. For errors other than `FedRobustError`, add the type,
    the file and the line that raised it."""
    if isinstance(error, FedRobustError):
        return _cut("; ".join(map(str, error.problems))) or type(error).__name__
    told = "; ".join(" ".join(line.split()) for line in str(error).splitlines() if line.strip())
    told = _cut(f"{type(error).__name__}: {told}" if told else type(error).__name__)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return told
    return f"{told} ({visible(Path(trace.tb_frame.f_code.co_filename).name)}, line {trace.tb_lineno})"


def _cut(text: str) -> str:
    text = visible(as_typed(text))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its causes, and the error that ended a Ray task."""
    seen, todo = set[int](), [error]
    while todo:
        each = todo.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            behind = (each.__cause__, each.__context__, getattr(each, "cause", None))
            todo += [other for other in behind if isinstance(other, BaseException)]
