"""The options that all study files have in common: an experiment, changes, attacks, seeds and fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from fedrobust.draft import ByPath
from fedrobust.experiment import LONGEST, Experiment
from fedrobust.options import Many, Options, refusal
from fedrobust.texts import is_name

Seeds = Many[Annotated[int, Field(ge=0, le=2**63 - 1)]]


class StudyOptions(Options):
    """A study: many runs that begin with one experiment."""

    kind: ClassVar[str]
    """`matrix`, `sweep` or `duel`: a tag of its runs in MLflow."""
    folders: ClassVar[Path]
    """The folder that contains the folders of all studies of this kind, below the working folder."""
    finished: ClassVar[str] = "runs.jsonl"
    """The name of the file of its finished runs, in its folder."""
    named: ClassVar[tuple[str, ...]] = ("attacks",)
    """The fields whose keys are names."""
    by_path: ClassVar[ByPath] = {"changes": ()}
    """The mappings whose keys are dotted paths of the experiment, see `Draft.overridden`; `*` stands for any name."""
    reserved: ClassVar[tuple[str, ...]] = ()
    """Names that have a special meaning; `*` stands for any ending."""
    put_aside: ClassVar[bool] = False
    """Whether results of the same name with other options are put aside. If not, such a study is refused: its searches
    are stored under its name elsewhere, too."""
    first: ClassVar[str] = "seeds"
    """The field of seeds that must not contain any of the `fresh` seeds."""

    name: str
    """Name of the study, and of its folder."""
    experiment: str
    """The experiment file that all runs begin with; a relative path is one from this file's folder."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Options of every run, by dotted path, e.g. `federation.rounds: 20`."""
    attacks: dict[str, Any] | None
    """For each name an attack, or a list of them."""
    fresh: Seeds
    """Seeds for what is measured again."""

    @classmethod
    def _instead(cls, key: str) -> str:
        if key == "seed":
            return f"the seeds are {cls.first} and fresh; an experiment file is run with fedrobust run"
        if key in Experiment.model_fields:
            return f"an option of the experiment is changed by changes.{key}"
        return super()._instead(key)

    @property
    def mlflow_experiment(self) -> str:
        """Return the name of the MLflow experiment of its runs: `tracking.experiment` in `changes`, or else its own
        name. That of the experiment file does not count, because many studies may begin with one file."""
        tracking = self.changes.get("tracking")
        inner = tracking.get("experiment") if isinstance(tracking, Mapping) else None
        found = self.changes.get("tracking.experiment", inner)
        return found if isinstance(found, str) else self.name[:LONGEST]

    @property
    def attack_lists(self) -> dict[str, list[Any]]:
        """Return the attacks of each name as a list."""
        return {name: each if isinstance(each, list) else [each] for name, each in (self.attacks or {}).items()}

    def resolved(self) -> dict[str, Any]:
        """Return all options that affect results, as JSON types; they are saved beside the runs."""
        return self.model_dump(mode="json", serialize_as_any=True)

    def _all_changes(self) -> dict[str, Mapping[str, Any]]:
        """Return every mapping of this file that changes options of the experiment, by its own dotted path."""
        return {"changes": self.changes}

    @model_validator(mode="after")
    def _changes_nothing_of_its_own(self) -> Self:
        own = ("seed",) if self.attacks is None else ("seed", "attacks")
        for place, changes in self._all_changes().items():
            for path in changes:
                if path.partition(".")[0] in own:
                    raise refusal(f"{path} is given by the {self.kind}; leave it out", place)
        return self

    @model_validator(mode="after")
    def _well_named(self) -> Self:
        if not is_name(self.name):
            raise refusal("use letters, digits, blanks, + - _", "name")
        for field in self.named:
            names: Mapping[str, Any] | None = getattr(self, field)
            if names is not None and not names:
                raise refusal("give at least one", field)
            for name in names or ():
                if any(fnmatch(name, reserved) for reserved in self.reserved):
                    raise refusal(f"'{name}' has a meaning of its own in a {self.kind}; give another name", field)
                if not is_name(name):
                    raise refusal(f"'{name}' cannot be a name here: use letters, digits, blanks, + - _", field)
        for name, attacks in self.attack_lists.items():
            if not all(isinstance(each, str | Mapping) for each in attacks):
                raise refusal("expected an attack, or a list of attacks", f"attacks.{name}")
        return self

    @model_validator(mode="after")
    def _fresh_seeds(self) -> Self:
        """Refuse fresh seeds on which something was chosen or searched, because they cannot judge it."""
        seeds = getattr(self, self.first)
        for field, given in ((self.first, seeds), ("fresh", self.fresh)):
            if len(set(given)) < len(given):
                raise refusal("must name each seed once", field)
        if both := sorted(set(self.fresh) & set(seeds)):
            where = "in seeds" if self.first == "seeds" else f"among the {self.first} seeds"
            raise refusal(f"{both[0]} is {where}; what was chosen on a seed cannot be judged on it", "fresh")
        return self
