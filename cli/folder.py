"""The files of a run, and when they may be written."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ..errors import InputError
from ..export import PLAN, PROGRAM, WEIGHTS
from ..sensitivity import After

__all__ = ["RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """Where a job keeps its documents: profiles, plan, weights, program and charts."""

    path: Path

    def profile(self, after: After = "nearest") -> Path:
        """Scores of the weights that this makes of the options; their arrays lie beside it."""
        return self.path / ("profile.json" if after == "nearest" else f"profile-{after}.json")

    def profiles(self) -> list[Path]:
        """The profiles that are there, those of nearest rounding first."""
        places = [self.profile(after) for after in get_args(After)]
        return [place for place in places if place.exists()]

    def any_profile(self) -> Path:
        """The profile that is there, that of nearest rounding before others."""
        return next(iter(self.profiles()), self.profile())

    @property
    def parts(self) -> Path:
        """Partial sums of a profile that is being measured."""
        return self.path / "profile.parts"

    @property
    def weight_parts(self) -> Path:
        """Finished layers and blocks of weights that are being found."""
        return self.path / "weights.parts"

    @property
    def plan(self) -> Path:
        """The plan."""
        return self.path / PLAN

    @property
    def frontier(self) -> Path:
        """The measured frontier."""
        return self.path / "frontier.json"

    def finished(self) -> tuple[Path, ...]:
        """What finalizing writes."""
        return self.plan, self.path / WEIGHTS, self.path / PROGRAM

    def prepare(self, outputs: tuple[Path, ...], *, force: bool) -> None:
        """See that the outputs can be written, before any work is done; nothing is made yet.

        Raises
        ------
        InputError
            An output exists and `force` is not set, or the folder cannot be written.
        """
        existing = [path.name for path in outputs if path.exists()]
        if existing and not force:
            raise InputError(
                f"{self.path} already holds {', '.join(existing)}; choose another --out, or --force to "
                "replace"
            )
        try:
            # A folder that does not exist yet can be made where the nearest one above it can be written.
            nearest = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
            with tempfile.TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            raise InputError(
                f"cannot write to {self.path}: {error.strerror}; choose another folder with --out"
            ) from error

    def drop_parts(self) -> None:
        """Remove the partial sums, and the folder where they were all it held."""
        self._drop(self.parts)

    def drop_weight_parts(self) -> None:
        """Remove the finished layers and blocks, once all of them are saved together."""
        self._drop(self.weight_parts)

    def _drop(self, parts: Path) -> None:
        if parts.exists():
            shutil.rmtree(parts, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()
