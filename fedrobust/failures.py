"""What ended a run: whether it would end others, too, and what is told of it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from fedrobust.errors import FedRobustError
from fedrobust.texts import visible

_EVERYWHERE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""What the operating system says where the next run would fare no better: a full disk, no more open files."""
_LONGEST = 1000
"""Characters of a reason."""


def ends_all(error: BaseException) -> bool:
    """Whether what ended a run would end all others of a sweep or matrix: a Ctrl-C, a server that is away, a full disk.

    Anything else is the run's own, whatever raised it: its options, its data, a user's class.
    """
    return any(
        not isinstance(each, Exception | SystemExit)
        or (isinstance(each, FedRobustError) and each.everywhere)
        or (isinstance(each, OSError) and each.errno in _EVERYWHERE)
        for each in _causes(error)
    )


def reason(error: BaseException) -> str:
    """What ended a run, in one visible line; of an error that is no `FedRobustError` with its kind, and with the file
    and the line that raised it."""
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
    text = visible(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came from, and what Ray says that a task died of."""
    seen, todo = set[int](), [error]
    while todo:
        each = todo.pop()
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            behind = (each.__cause__, each.__context__, getattr(each, "cause", None))
            todo += [other for other in behind if isinstance(other, BaseException)]
