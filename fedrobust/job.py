"""A command that runs as a job on a cluster: how it shows paths, and what it tells about itself.

Its files lie in a folder that Ray unpacks them to, whose path nobody who submits knows. So texts for users show that
folder as the user typed it. Its progress is told in lines of its output, which `fedrobust.cluster` reads and hides.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time

JOB = "FEDROBUST_JOB"
"""Environment variable that is set in jobs."""
SHIPPED = "FEDROBUST_SHIPPED"
"""Environment variable with the folder of the files that were sent with the job."""
TYPED = "FEDROBUST_TYPED"
"""Environment variable with the text that stands before the path of such a file in the user's command, e.g. `./`."""
MARK = "fedrobust job: "
"""The beginning of a line of output that tells something about the job, as JSON."""
_UNPACKED = r"/[^\s'\":]*/working_dir_files/_ray_pkg_[0-9a-f]+"
"""The folder to which Ray unpacks the files on any node."""


def in_job() -> bool:
    """Return whether this command was submitted to a cluster."""
    return JOB in os.environ


def as_typed(text: str) -> str:
    """Return `text` with the paths of the job's files as the user typed them; outside of a job, `text` itself."""
    sent = os.environ.get(SHIPPED)
    if not sent:
        return text
    folders = "|".join([re.escape(each) for each in dict.fromkeys((sent, os.path.realpath(sent)))] + [_UNPACKED])
    typed = os.environ.get(TYPED, "")
    itself = typed.rstrip("/") or "."
    return re.sub(rf"(?:{folders})(/|(?!\w|[.-]\w))", lambda found: typed if found[1] else itself, text)


def tell(**told: object) -> None:
    """Write a line about this job to its output; outside of a job, nothing.

    told: `done`, `of` and `what` for the progress; `folder` for the absolute path of its results, and `parent` for the
        id of the study's run in MLflow.
    """
    if in_job():
        print(f"{MARK}{json.dumps({'at': round(time.time(), 3), **told})}", file=sys.stdout, flush=True)
