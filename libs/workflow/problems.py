"""What is wrong with a workflow document: values with a path, and the exceptions of this package."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, Literal

# Comparing a word with thousands of candidates takes milliseconds; nobody reads the fortieth suggestion.
_SUGGESTIONS: Final = 40


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake (`error`: the document cannot run) or oddity (`warning`: it runs, perhaps not as meant)."""

    at: str
    """Path in the document (`workflow.graph.nodes[3].data.cases[0].conditions`) or `line 3, column 7`."""
    problem: str
    hint: str
    severity: Literal["error", "warning"]

    def __str__(self) -> str:
        place = f"{self.at}: " if self.at else ""
        return f"{place}{self.problem}{'. ' + self.hint if self.hint else ''}"


class WorkflowError(Exception):
    """Root of the exceptions of libs.workflow."""


class DefinitionInvalid(WorkflowError):
    """The document cannot run. Edit it; retrying will not help. `problems` are all of its mistakes."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Findings:
    """Collects problems while a document is read; never raises."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.failed = False
        self._suggested = 0

    def error(self, at: str, problem: str, hint: str = "") -> None:
        self.failed = True
        self.problems.append(Problem(at, problem, hint, "error"))

    def warn(self, at: str, problem: str, hint: str = "") -> None:
        self.problems.append(Problem(at, problem, hint, "warning"))

    def suggest(self, word: str, known: Iterable[str], otherwise: str = "") -> str:
        """`Did you mean "x"?` when a known word is near, else `otherwise`."""
        self._suggested += 1
        if self._suggested > _SUGGESTIONS:
            return otherwise
        return did_you_mean(word, known) or otherwise

    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    def warnings(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "warning")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean "x"?` for the known word that is nearest, or empty text."""
    near = get_close_matches(word[:200], list(known), n=1, cutoff=0.6)
    return f'Did you mean "{near[0]}"?' if near else ""


def kind_of(value: object) -> str:
    """What a value is, in the words of a document: for messages that must not quote it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text" if value else "empty text"
        case list() | tuple():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            return type(value).__name__
