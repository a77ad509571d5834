"""Draw a run's charts into its folder."""

from __future__ import annotations

from ..allocator import Plan
from ..reconstruct import Judged
from ..sensitivity import Profile, ProfileArrays
from .folder import RunFolder

__all__ = ["draw_charts"]


def draw_charts(
    folder: RunFolder,
    profile: Profile,
    arrays: ProfileArrays | None,
    plan: Plan | None,
    judged: Judged | None,
) -> list[str]:
    """File names of the charts."""
    return []
