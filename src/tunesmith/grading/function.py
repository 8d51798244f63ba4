"""A Python function of the user's own as a grader. Recipes only name it: code comes from the command line (`--code`) or a program, never from what is read."""

import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from tunesmith.base import ConfigError, DataError
from tunesmith.base.files import digest, known_sha256
from tunesmith.data.example import Example

from .base import AnswerGrader, Score

Judge = Callable[[str, Example], float]
"""What an answer to an example is worth, from 0 to 1."""
_known: dict[str, tuple[Judge, Path]] = {}


def grader(function: Judge) -> Judge:
    """Let recipes name a function: `{kind: function, name: ITS_NAME}` is then a grader, and can pay for answers as one. To be used as a decorator.

    Args:
        function: of an answer (str) and the example that it answers, whose gold answer is `example.gold`; it says what the answer is worth, from 0 to 1.

    Raises:
        ConfigError: it is in no file, so that nobody could tell whether it changed; or a function of another file has its name.
    """
    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        file = None
    if file is None or not Path(file).is_file():
        raise ConfigError(f"grader {function.__name__!r}: is in no file; put it in one")
    _know(function.__name__, function, Path(file).resolve())
    return function


def _know(name: str, function: Judge, file: Path) -> None:
    before = _known.get(name)
    if before is not None and before[1] != file:
        raise ConfigError(f"grader {name!r}: is defined in {before[1]} and in {file}; give one another name")
    _known[name] = function, file


def load_code(path: Path) -> None:
    """Run a Python file, and let recipes name its functions, but those whose names begin with an underscore and those that it imports.

    Raises:
        ConfigError: there is no such file, it cannot be run, or has no such function; or another file has one of the same name.
    """
    if not path.is_file():
        raise ConfigError(f"--code {path}: no such file")
    path = path.resolve()
    found = importlib.util.spec_from_file_location(f"tunesmith_code_{digest(str(path))[:12]}", path)
    if found is None or found.loader is None:
        raise ConfigError(f"--code {path}: is no Python file; give one that ends with .py")
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"--code {path}: {type(error).__name__}: {error}") from error
    own = {name: one for name, one in vars(module).items() if name[0] != "_" and _of(one, module.__name__)}
    if not own:
        raise ConfigError(f"--code {path}: defines no function that a recipe could name")
    for name, one in own.items():
        _know(name, one, path)


def _of(value: Any, module: str) -> bool:
    """Whether it is a function that a module defines, decorated or not."""
    return inspect.isfunction(value) and value.__module__ == module


def code_files() -> list[Path]:
    """The files of all functions that recipes may name."""
    return sorted({file for _, file in _known.values()})


class Function(AnswerGrader):
    """Share that a Python function gives: `def short(answer, example): return len(answer) < 100` in a file that is given by `tunesmith --code FILE.py`. What it imports is not looked at when the file is compared with that of an earlier run."""

    kind: Literal["function"] = "function"
    name: str = "judge"
    """The function's name."""

    @property
    def called(self) -> str:
        """As the function, so that several can judge in one recipe."""
        return self.name

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The file that it is in."""
        return (self._own[1],)

    @property
    def signature(self) -> str:
        """Its name and its file's content."""
        return json.dumps([self.kind, self.name, known_sha256(self._own[1])])

    def check(self, examples: Sequence[Example]) -> None:
        """Try the function on the first right answer; on all it might cost something."""
        self.score(examples[0].gold, examples[0])

    def score(self, answer: str, example: Example) -> Score:
        """What the function says.

        Raises:
            DataError: it fails, or says no number from 0 to 1.
        """
        function, file = self._own
        try:
            worth = float(function(answer, example))
        except Exception as error:
            raise DataError(
                f"{example.origin}: {file.name}: {self.name} fails on it: {type(error).__name__}: {error}"
            ) from error
        if not (math.isfinite(worth) and 0 <= worth <= 1):
            raise DataError(f"{example.origin}: {file.name}: {self.name} says {worth:g}, which is not from 0 to 1")
        return Score(worth, 1.0, text="" if worth == 1 else f"worth {worth:g}")

    @property
    def _own(self) -> tuple[Judge, Path]:
        if self.name not in _known:
            raise ConfigError(
                f"grader function: nothing says what {self.name!r} is; give its file: tunesmith --code FILE.py COMMAND ..., or use tunesmith.grader in a program"
            )
        return _known[self.name]
