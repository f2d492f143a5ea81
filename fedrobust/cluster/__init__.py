"""Jobs on a Ray cluster: the working folder is shipped, the command runs there, its output comes back.

A job is one of the commands that read a file (`run`, `matrix`, ...). It runs on the cluster's head node, with the
Python of the cluster itself. Two folders matter there:

- the **copy** of the working folder, which Ray unpacks for the job and deletes some time later: experiment files and
  classes are read from it, and if it is a clone of FedRobust, its code runs;
- the **workplace**, which is kept: the job's current folder, so that `mlruns/` with runs, matrices and sweeps is inside
  it. A job that is submitted again, `--resume` included, finds the results of earlier jobs there. It is `--workplace`,
  or else FEDROBUST_HOME in the head node's environment, or else `~/fedrobust`.

The address of a cluster is that of its jobs server (`http://HOST:8265`). Every request carries the cluster's token.

Keys, data and results do not leave the working folder:

>>> from fedrobust.cluster.folder import sort_out
>>> sent, left = sort_out(["mine.yaml", "rule.py", "id_rsa", "patients.csv", "mlruns/mlflow.db"])
>>> sent
['mine.yaml', 'rule.py']
>>> {reason: names for reason, names in left.items() if names}
{'keys or credentials': ['id_rsa'], 'results or caches': ['mlruns/mlflow.db'], 'files of other kinds': ['patients.csv']}
"""

from fedrobust.cluster.address import Cluster, find_cluster
from fedrobust.cluster.links import runs_page, tracking_server
from fedrobust.cluster.ray_jobs import Job, fetch, find_job, jobs, logs, stop, submit
from fedrobust.cluster.shipping import DRIVERS, prepare
from fedrobust.cluster.unpacking import written
from fedrobust.errors import ClusterError

__all__ = [
    "DRIVERS",
    "Cluster",
    "ClusterError",
    "Job",
    "fetch",
    "find_cluster",
    "find_job",
    "jobs",
    "logs",
    "prepare",
    "runs_page",
    "stop",
    "submit",
    "tracking_server",
    "written",
]
