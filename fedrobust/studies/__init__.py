"""Studies: many runs that begin with one experiment.

A study decides which runs come next: a matrix enumerates them, a sweep asks Optuna, a duel alternates two searches.
This room has what the three have in common: the options of their files, the composition of experiments, teams of
actors, the store of finished runs, the parent run in MLflow, and the rule that tables and pages are written even if a
study is stopped. The same command continues a study that was stopped for any reason: finished runs are not repeated.
The digest of an experiment decides which runs are the same, not their names in MLflow:

>>> from fedrobust.experiment import Experiment
>>> from fedrobust.studies.planned import PlannedRun
>>> first, again = (PlannedRun(experiment=Experiment(), label=label, tags={}) for label in ("first", "again"))
>>> first.digest == again.digest
True
"""
