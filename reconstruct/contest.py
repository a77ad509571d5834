"""Which plan, made by which method: all that compete are finalized and measured, the dear ones last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..allocator import Guard, Plan, Reconstruction
from ..errors import NotFiniteError
from ..network import Data, Network
from .finalize import Finalized
from .judge import Finalize, Judged, judge
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


@dataclass(frozen=True)
class _Entered:
    """What competes, and how it is carried out; as `contest` has them."""

    network: Network
    plans: Sequence[Plan]
    uniform: Plan | None
    data: Data
    methods: Callable[[MethodName], Method]
    carry_out: CarryOut

    def by(self, name: MethodName) -> Judged:
        """All by a method; by a dear one what is worth it."""
        screened = _tried(lambda: self.judged(MethodName.GPTQ)) if name.is_dear else None
        return self.learned(name, screened) if isinstance(screened, Judged) else self.judged(name)

    def judged(self, name: MethodName) -> Judged:
        """All by a method."""
        return judge(self.network, self.plans, self.uniform, self.data, self._finalize(self.methods(name)))

    def learned(self, name: MethodName, screened: Judged) -> Judged:
        """The plans that are near the best after GPTQ, by a dear method.

        A uniform plan that is not among them is compared as GPTQ left it while that is worse than what is
        kept, and by the method where it is not.
        """
        most = SCREEN * screened.kept.quality.loss
        near = [candidate.plan for candidate in screened.plans if candidate.quality.loss <= most]
        if not near:
            # Only the uniform plan is good: it competes with the best of the solved ones.
            best = sorted(screened.plans, key=lambda candidate: candidate.quality.loss)[:1]
            near = [candidate.plan for candidate in best]
        finalize, uniform = self._finalize(self.methods(name)), screened.uniform
        if uniform is None or uniform.quality.loss <= most:
            return judge(self.network, near, None if uniform is None else uniform.plan, self.data, finalize)
        found = judge(self.network, near, None, self.data, finalize)
        kept = found.kept
        if uniform.quality.loss < kept.quality.loss:
            both = judge(
                self.network,
                [kept.plan],
                uniform.plan,
                self.data,
                lambda plan: kept.finalized if plan is kept.plan else finalize(plan),
            )
            return replace(both, plans=found.plans)
        guard = Guard(
            option=uniform.plan.uniform_name(),
            uniform_loss=uniform.quality.loss,
            plan_loss=kept.quality.loss,
            kept="plan",
            data=kept.quality.data,
        )
        kept = replace(kept, plan=kept.plan.model_copy(update={"guard": guard}))
        return replace(found, kept=kept, uniform=uniform)

    def expected(self, screened: Judged) -> float | None:
        """What BRECQ makes of the loss of the plan kept after GPTQ; None where its output is not finite."""
        cheap, quick = screened.kept, self._finalize(_quick(self.methods(MethodName.BRECQ)))
        looked = _tried(lambda: judge(self.network, [cheap.plan], None, self.data, quick))
        if isinstance(looked, NotFiniteError):
            return None
        # In logarithms.
        return cheap.quality.loss * (looked.kept.quality.loss / cheap.quality.loss) ** 2

    def _finalize(self, method: Method) -> Finalize:
        return lambda plan: self.carry_out(method, plan)


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

    Learned rounding takes minutes and more, so that plans far behind after GPTQ are left as GPTQ made them,
    but for a uniform one that even so is better than what was learned. Where the method is chosen here, one
    by which no output is finite drops out while another remains.

    Parameters
    ----------
    plans, uniform, data
        As `judge`.
    method : MethodName or None
        None takes the cheapest of rounding to nearest, GPTQ and BRECQ whose loss is at most `MARGIN` times
        that of the best of them, or at most 0.002 nats above it. What BRECQ would reach is extrapolated from
        a fifth of its iterations, and not asked where another loses no more than those 0.002 nats. Once BRECQ
        is carried out, the best of all that was measured is kept.
    methods : callable
        From a name to the method.
    carry_out : callable
        Finalizes a plan by a method.
    on_compared : callable, optional
        Told what the automatic choice learns; of BRECQ first what is expected, then what is measured.

    Raises
    ------
    NotFiniteError
        The output of none of the quantized networks is finite.
    """
    entered = _Entered(network, plans, uniform, data, methods, carry_out)
    if method is not None:
        return _stated(entered.by(method), method, {}, data)

    compared: dict[MethodName, float] = {}
    measured: dict[MethodName, Judged] = {}

    def told(name: MethodName, loss: float, *, expected: bool = False) -> None:
        compared[name] = loss
        on_compared(Compared(name, loss, expected))

    def tried(name: MethodName, judged: Callable[[], Judged]) -> Judged | NotFiniteError:
        found = _tried(judged)
        if isinstance(found, Judged):
            measured[name] = found
            told(name, found.kept.quality.loss)
        return found

    nearest = tried(MethodName.NEAREST, lambda: entered.judged(MethodName.NEAREST))
    if isinstance(nearest, Judged) and nearest.kept.quality.loss <= UNSEEN:
        return _stated(nearest, MethodName.NEAREST, compared, data)
    screened = tried(MethodName.GPTQ, lambda: entered.judged(MethodName.GPTQ))
    if not measured:
        assert isinstance(nearest, NotFiniteError)
        raise nearest
    if isinstance(screened, Judged) and min(compared.values()) > UNSEEN:
        expected = entered.expected(screened)
        if expected is not None:
            told(MethodName.BRECQ, expected, expected=True)
    name = _cheapest(compared)
    if isinstance(screened, Judged) and name is MethodName.BRECQ:
        tried(name, lambda: entered.learned(MethodName.BRECQ, screened))
        # What that took is spent.
        name = min(measured, key=lambda each: measured[each].kept.quality.loss)
    return _stated(measured[name], name, compared, data)


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


def _cheapest(compared: Mapping[MethodName, float]) -> MethodName:
    """The first of the methods, cheapest first, that comes near the best."""
    best = min(compared.values())
    return next(name for name, loss in compared.items() if loss <= max(MARGIN * best, best + UNSEEN))


def _stated(judged: Judged, method: MethodName, compared: Mapping[MethodName, float], data: Data) -> Judged:
    """The plan that is kept says how its weights were found."""
    how = Reconstruction(
        method=method, compared={str(name): loss for name, loss in compared.items()}, data=data.name
    )
    plan = judged.kept.plan.model_copy(update={"reconstruction": how})
    return replace(judged, kept=replace(judged.kept, plan=plan))
