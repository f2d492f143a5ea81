"""Studies: many runs that begin with one experiment.

A study says which runs come next: a matrix enumerates them, a sweep asks Optuna, a duel alternates two searches. What
they have in common is here: the options of their files, how experiments are composed, teams of actors, the store of
finished runs, the parent run in MLflow, and that tables and pages are written also where a study is stopped. Whatever
stopped it, the same command goes on: runs that are finished are not made again.
"""
