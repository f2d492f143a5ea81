"""Options are objects: a rule, an attack or a data source is one frozen pydantic model.

Its fields are its options, its methods implement it, its docstring cites the paper. `OneOf(Rule)` makes a field that
holds any subclass of `Rule` in this package, selected by `name`, or a user's own class as `name:
"package.module:Class"`. There is no other registry.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pkgutil import iter_modules
from textwrap import dedent
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.users_code import FORM, named
from fedrobust.validation import problems_of

T = TypeVar("T")

Many = Annotated[tuple[T, ...], Field(strict=False)]
"""An immutable list: YAML lists are accepted, the items are still strictly typed."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the entry of `allowed` closest to `word`, or an empty text."""
    close = difflib.get_close_matches(word, list(allowed), n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def refusal(problem: Problem | str, path: str = "") -> PydanticCustomError:
    """Return an error that a validator can raise.

    problem: the problem, or its message.
    path: the dotted path of the wrong value, relative to the object that raises the error.

    The value that was found can be left out: the code that reads the file adds it.
    """
    problem = Problem(problem, path) if isinstance(problem, str) else problem
    return PydanticCustomError("refused", "{problem}", {"problem": problem})


LARGEST = 2**63 - 1
"""Largest whole number of an option: NumPy and torch take no larger one, and a float cannot hold all of them."""


class Options(BaseModel):
    """Base of all options of experiment files: frozen, strictly typed, unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    if not TYPE_CHECKING:  # type checkers know the arguments from the fields

        def __init__(self, /, **values: Any) -> None:
            """Raises `ExperimentError`, with the same problems as if the options were in a file."""
            try:
                super().__init__(**values)
            except ValidationError as error:
                place = Origin(text=type(self).__name__)
                raise ExperimentError(*problems_of(error, values, lambda *keys: place)) from None

        __init__.__pydantic_base_init__ = True  # options inside of others are checked with these, without a call

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy in which the fields of `update` have other values; these are checked, unlike pydantic's own.

        Raises `ExperimentError`, also for a dotted path; for those see `Experiment.changed`.
        """
        update = {str(name): value for name, value in (update or {}).items()}
        for name in update:
            if name not in type(self).model_fields and "." in name:
                problem = Problem("no field", name, hint="for a dotted path: experiment.changed({…})")
                raise ExperimentError(problem.at(Origin(text=type(self).__name__)))
        copy = super().model_copy(deep=deep)
        return type(self)(**{**dict(copy), **update}) if update else copy

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        for key in data:
            if key not in cls.model_fields:
                names = tuple(cls.model_fields)
                raise refusal(Problem("unknown key", str(key), "", names, cls._instead(str(key))))
            for path, each in _numbers(str(key), data[key]):
                if abs(each) > LARGEST:
                    raise refusal(f"expected a number between -{LARGEST} and {LARGEST}", path)
        return {key: cls._of_default_class(key, value) for key, value in data.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        found = handler(schema)
        fields = handler.resolve_ref_schema(found).get("properties", {})
        for name, text in field_docstrings(cls).items():
            fields[name]["description"] = text
        return found

    @classmethod
    def _instead(cls, key: str) -> str:
        """Return the hint for a key that is unknown here."""
        return nearest(key, cls.model_fields)

    @classmethod
    def _of_default_class(cls, key: str, value: Any) -> Any:
        """Handle `optimizer: {lr: 0.1}`: without a name, the class is that of the field's default."""
        field = cls.model_fields[key]
        chosen = any(isinstance(item, OneOfClasses) for item in field.metadata) and isinstance(field.default, Options)
        if chosen and isinstance(value, Mapping) and "name" not in value:
            return {"name": field.default.name, **value}
        return value


def _numbers(path: str, value: Any) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers in an option's value, each with its dotted path."""
    items = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for place, each in [(path, value), *((f"{path}.{number}", each) for number, each in items)]:
        if isinstance(each, int):
            yield place, each


def field_docstrings(option: type[Options]) -> dict[str, str]:
    """Return the docstrings below the fields of a class: field → text. A field that is declared again needs its own.

    pydantic would read the source of every class when it is imported, a quarter of a second in each process.
    """
    found: dict[str, str] = {}
    for base in reversed(option.__mro__):
        if not issubclass(base, Options):
            continue
        try:
            (declared,) = ast.parse(dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):  # a class from a console has no source
            continue
        assert isinstance(declared, ast.ClassDef)
        for line, after in pairwise([*declared.body, ast.Pass()]):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                found.pop(line.target.id, None)
                text = (
                    after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
                )
                if isinstance(text, str) and line.target.id in option.model_fields:
                    found[line.target.id] = inspect.cleandoc(text)
    return found


def summary(option: type[Options]) -> str:
    """Return the first line of a class's docstring."""
    return (option.__doc__ or "").strip().splitlines()[0] if option.__doc__ else ""


def tag(option: type[BaseModel]) -> str | None:
    """Return the literal `name` of a class of this package; None for abstract classes and users' classes."""
    field = option.model_fields.get("name")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])


NAMED = re.compile(r"^    name: Literal\[", re.MULTILINE)


def find_options(package: str) -> None:
    """Import all modules of a package that define named classes, so that `members` finds these classes.

    The source text shows which modules these are. Other modules are not imported, since they may need torch, which
    takes seconds.
    """
    for module in iter_modules(import_module(package).__path__):
        source = Path(str(getattr(module.module_finder, "path", ""))) / f"{module.name}.py"
        if source.is_file() and NAMED.search(source.read_text(encoding="utf-8")):
            import_module(f"{package}.{module.name}")


def members(*bases: type[Options]) -> dict[str, type[Options]]:
    """Return the classes of this package that derive from `bases` and have a name: name → class, in order of
    definition."""
    found: dict[str, type[Options]] = {}
    todo = [sub for base in bases for sub in base.__subclasses__()]
    while todo:
        option = todo.pop(0)
        name = tag(option)
        if name is not None and option.__module__.startswith("fedrobust."):
            found[name] = option
        todo.extend(option.__subclasses__())
    return found


def imported(path: str) -> Any:
    """Import and return the object "package.module:Name", which may be defined beside the file that is being checked.

    path: a text such as `package.module:Name`.
    """
    try:
        return named(path)
    except (Exception, SystemExit) as error:  # importing a user's module may raise anything
        raise refusal(f"cannot import '{path}': {type(error).__name__}: {error}", "name") from error


def user_class(path: str, bases: tuple[type[Options], ...]) -> type[Options]:
    """Return the class "package.module:Class", which must be a subclass of one of `bases`.

    path: a text such as `package.module:Class`.
    """
    found = imported(path)
    if not (isinstance(found, type) and issubclass(found, bases)):
        kinds = " or ".join(base.__name__ for base in bases)
        raise refusal(f"'{path}' is not a subclass of {kinds}", "name")
    if inspect.isabstract(found):
        raise refusal(f"'{path}' is abstract: it leaves {', '.join(sorted(found.__abstractmethods__))} open", "name")
    return found


@dataclass(frozen=True)
class OneOfClasses:
    """Field metadata made by `OneOf`: any named subclass of `bases`, by `name`."""

    bases: tuple[type[Options], ...]
    shorthand: Callable[[str], Mapping[str, Any] | None] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        known = members(*self.bases)
        inner: Any = next(iter(known.values()))
        if len(known) > 1:
            inner = Annotated[Union[tuple(known.values())], Field(discriminator="name")]  # noqa: UP007
        return core_schema.no_info_wrap_validator_function(self._validate, handler.generate_schema(inner))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        named = handler(schema)
        user = {
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": FORM.pattern}},
            "required": ["name"],
        }
        return {"anyOf": [named, {"enum": list(members(*self.bases))}, {"type": "string", "pattern": ":"}, user]}

    def _validate(self, value: Any, handler: Callable[[Any], Any]) -> Any:
        known = members(*self.bases)
        if isinstance(value, self.bases):
            return value
        if isinstance(value, str):
            value = (self.shorthand and self.shorthand(value)) or {"name": value}
        if not isinstance(value, Mapping):
            raise refusal(Problem("expected a name, or a mapping with a name", allowed=tuple(known)))
        name = value.get("name")
        if name is None:
            raise refusal(Problem("missing", "name", allowed=tuple(known)))
        if not isinstance(name, str):
            raise refusal(Problem("expected a name", "name", allowed=tuple(known)))
        if FORM.fullmatch(name):
            return user_class(name, self.bases).model_validate(dict(value))
        if name not in known:
            raise refusal(Problem("", "name", allowed=tuple(known), hint=nearest(name, known)))
        return handler(value)


def OneOf(*bases: type[Options], shorthand: Callable[[str], Mapping[str, Any] | None] | None = None) -> OneOfClasses:  # noqa: N802
    """Return metadata for a field that holds one subclass of `bases`: `Annotated[Rule, OneOf(Rule)]`.

    A bare string means an object of that name with its defaults; `shorthand` may accept further spellings.
    """
    return OneOfClasses(bases, shorthand)
