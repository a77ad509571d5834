"""Which plan, made by which method: all that compete are finalized and measured, the dear ones last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..allocator import Guard, Plan, Reconstruction
from ..errors import NotFiniteError
from ..network import Data, Network
from .finalize import Finalized
from .judge import Judged, judge
from .method import Method
from .named import MethodName
from .rounding import LearnedRounding

__all__ = ["MARGIN", "Compared", "contest"]

MARGIN = 1.5
"""A cheaper method is taken while its loss is at most this many times that of the best."""
UNSEEN = 0.002
"""Differences in the loss, in nats, that are too small to pay for."""
LOOK = 5
"""A quick look takes one iteration of so many, and wins about half of what all win, in logarithms."""
SCREEN = 2.0
"""Plans whose loss after GPTQ is more than this many times the least are not learned for."""

CarryOut = Callable[[Method, Plan], Finalized]


@dataclass(frozen=True)
class Compared:
    """What the automatic choice learned of a method.

    Attributes
    ----------
    name : MethodName
    loss : float
        Of the best plan, on the calibration data.
    expected : bool
        Whether that is extrapolated from a quick look, and not measured.
    """

    name: MethodName
    loss: float
    expected: bool


def contest(
    network: Network,
    plans: Sequence[Plan],
    uniform: Plan | None,
    data: Data,
    method: MethodName | None,
    methods: Callable[[MethodName], Method],
    carry_out: CarryOut,
    on_compared: Callable[[Compared], None] = lambda compared: None,
) -> Judged:
    """Finalize and measure the plans that compete, and the best uniform one; keep the one of least loss.

    Learned rounding takes minutes and more, so that plans far behind after GPTQ are left as GPTQ made them.
    Where the method is chosen here, one by which no output is finite drops out while another remains.

    Parameters
    ----------
    plans, uniform, data
        As `judge`.
    method : MethodName or None
        None takes the cheapest of rounding to nearest, GPTQ and BRECQ that comes within `MARGIN` of the best,
        or within 0.002 nats. What BRECQ would reach is extrapolated from a fifth of its iterations.
    methods : callable
        From a name to the method.
    carry_out : callable
        Finalizes a plan by a method.
    on_compared : callable, optional
        Told what the automatic choice learns.

    Raises
    ------
    NotFiniteError
        The output of none of the quantized networks is finite.
    """

    def judged(name: MethodName, plans: Sequence[Plan], uniform: Plan | None) -> Judged:
        chosen = methods(name)
        return judge(network, plans, uniform, data, lambda plan: carry_out(chosen, plan))

    if method is not None:
        if not method.is_dear:
            return _stated(judged(method, plans, uniform), method, {}, data)
        screened = _tried(lambda: judged(MethodName.GPTQ, plans, uniform))
        if isinstance(screened, NotFiniteError):
            return _stated(judged(method, plans, uniform), method, {}, data)
        return _stated(_learned(screened, lambda *them: judged(method, *them)), method, {}, data)

    compared: dict[str, float] = {}

    def told(name: MethodName, loss: float, *, expected: bool = False) -> None:
        compared[name] = loss
        on_compared(Compared(name, loss, expected))

    nearest = _tried(lambda: judged(MethodName.NEAREST, plans, uniform))
    if isinstance(nearest, Judged):
        told(MethodName.NEAREST, nearest.kept.quality.loss)
        if nearest.kept.quality.loss <= UNSEEN:
            return _stated(nearest, MethodName.NEAREST, compared, data)
    screened = _tried(lambda: judged(MethodName.GPTQ, plans, uniform))
    if isinstance(screened, NotFiniteError):
        if isinstance(nearest, NotFiniteError):
            raise nearest
        return _stated(nearest, MethodName.NEAREST, compared, data)
    cheap = screened.kept
    told(MethodName.GPTQ, cheap.quality.loss)
    if isinstance(nearest, Judged) and not _pays(nearest.kept.quality.loss, cheap.quality.loss):
        return _stated(nearest, MethodName.NEAREST, compared, data)
    if cheap.quality.loss > UNSEEN:
        quick = _quick(methods(MethodName.BRECQ))
        looked = _tried(lambda: judge(network, [cheap.plan], None, data, lambda plan: carry_out(quick, plan)))
        if isinstance(looked, Judged):
            # In logarithms.
            expected = cheap.quality.loss * (looked.kept.quality.loss / cheap.quality.loss) ** 2
            told(MethodName.BRECQ, expected, expected=True)
            if _pays(cheap.quality.loss, expected):
                found = _tried(lambda: _learned(screened, lambda *them: judged(MethodName.BRECQ, *them)))
                if isinstance(found, Judged):
                    return _stated(found, MethodName.BRECQ, compared, data)
    return _stated(screened, MethodName.GPTQ, compared, data)


def _tried(judged: Callable[[], Judged]) -> Judged | NotFiniteError:
    """What was judged, or why there is nothing to judge."""
    try:
        return judged()
    except NotFiniteError as error:
        return error


def _quick(method: Method) -> Method:
    """Learned rounding with few iterations."""
    assert isinstance(method, LearnedRounding)
    few = max(1, method.learning.iterations // LOOK)
    return replace(method, learning=replace(method.learning, iterations=few))


def _pays(cheap: float, dear: float) -> bool:
    """Whether the dearer method is better by enough."""
    return cheap > MARGIN * dear and cheap > dear + UNSEEN


def _learned(screened: Judged, judged: Callable[[Sequence[Plan], Plan | None], Judged]) -> Judged:
    """The plans that are near the best after GPTQ judged again; the others as they are."""
    most = SCREEN * screened.kept.quality.loss
    near = [candidate.plan for candidate in screened.plans if candidate.quality.loss <= most]
    uniform = screened.uniform
    has_uniform = uniform is not None and uniform.quality.loss <= most
    if not near:
        # Only the uniform plan is good: it competes with the best of the solved ones.
        best = sorted(screened.plans, key=lambda candidate: candidate.quality.loss)[:1]
        near = [candidate.plan for candidate in best]
    found = judged(near, uniform.plan if uniform is not None and has_uniform else None)
    if has_uniform or uniform is None:
        return found
    # Not learned for, and so compared as GPTQ left it.
    plan = found.kept.plan
    guard = Guard(
        option=uniform.plan.uniform_name(),
        uniform_loss=uniform.quality.loss,
        plan_loss=found.kept.quality.loss,
        kept="plan",
        data=found.kept.quality.data,
    )
    kept = replace(found.kept, plan=plan.model_copy(update={"guard": guard}))
    return replace(found, kept=kept, uniform=uniform)


def _stated(judged: Judged, method: MethodName, compared: dict[str, float], data: Data) -> Judged:
    """The plan that is kept says how its weights were found."""
    how = Reconstruction(method=method, compared=compared, data=data.name)
    plan = judged.kept.plan.model_copy(update={"reconstruction": how})
    return replace(judged, kept=replace(judged.kept, plan=plan))
