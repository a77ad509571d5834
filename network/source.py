"""Python named on the command line: `file.py:function`, `module:function`, `file.py:function('argument')`."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError
from .reason import reason_of

__all__ = ["Source", "parse_source"]

_FORM = re.compile(r"(?P<where>.+?):(?P<call>[A-Za-z_]\w*(?:\(.*\))?)", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """A Python function to call, as the user named it.

    Attributes
    ----------
    spec : str
        As given.
    where : str
        A path to a `.py` file, or the name of an importable module.
    function : str
    args, kwargs
        Literals; empty where only the function was named.
    """

    spec: str
    where: str
    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @contextmanager
    def call(self) -> Iterator[Any]:
        """Import, call, and yield the result; the file's folder can be imported from until the block ends.

        Raises
        ------
        InputError
            Missing file, module or function, or an exception in the user's code, with its line.
        """
        path = Path(self.where)
        folder = [str(path.resolve().parent)] if self.where.endswith(".py") else []
        before = list(sys.path)
        sys.path[:0] = folder
        try:
            function = self._function(self._module(path))
            try:
                result = function(*self.args, **self.kwargs)
            except Exception as error:
                raise InputError(f"{self.spec} failed: {reason_of(error)}") from error
            yield result
        finally:
            sys.path[:] = before

    def _module(self, path: Path) -> ModuleType:
        try:
            if not self.where.endswith(".py"):
                return importlib.import_module(self.where)
            if not path.is_file():
                raise InputError(f"there is no file {path} (from '{self.spec}')")
            # Under a name of its own, so that a user's `models.py` hides no other module.
            name = f"_apportion_source_{path.stem}"
            definition = importlib.util.spec_from_file_location(name, path)
            if definition is None or definition.loader is None:
                raise InputError(f"{path} cannot be imported as Python")
            module = importlib.util.module_from_spec(definition)
            sys.modules[name] = module
            definition.loader.exec_module(module)
            return module
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"cannot import {self.where}: {reason_of(error)}") from error

    def _function(self, module: ModuleType) -> Callable[..., Any]:
        function = getattr(module, self.function, None)
        if callable(function):
            return function  # type: ignore[no-any-return]
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(self.function, names, n=5, cutoff=0.0)
        raise InputError(
            f"{self.where} has no function '{self.function}'; it has {', '.join(near) or 'no functions'}"
        )


def parse_source(spec: str, what: str) -> Source:
    """Parse `where:function` or `where:function(literals)`; nothing is imported yet.

    Raises
    ------
    InputError
        Another form, or arguments that are not literals. `what` says what the spec is for.
    """
    match = _FORM.fullmatch(spec)
    if match is None:
        raise InputError(
            f"'{spec}' is not {what}; give 'file.py:function', 'module:function' or "
            "\"file.py:function('argument')\""
        )
    where, text = match["where"], match["call"]
    if "(" not in text:
        return Source(spec, where, text, (), {})
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("it is not a single call")
        args = tuple(ast.literal_eval(argument) for argument in call.args)
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("it unpacks a dictionary")
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(
            f"'{spec}': the arguments must be literals, such as numbers, strings or lists: {reason_of(error)}"
        ) from error
    return Source(spec, where, call.func.id, args, kwargs)
