"""How integer weights are found, from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..allocator import Plan
from ..errors import InputError
from ..network import Data, Network
from ..reconstruct import (
    BlockLoss,
    Compared,
    Corrected,
    Correction,
    Finalized,
    Granularity,
    LearningChoices,
    Method,
    MethodName,
    method_named,
)
from .choices import MethodChoice
from .console import Reporter
from .folder import RunFolder
from .inputs import bytes_of

__all__ = ["Making", "compared_line", "making_of"]


@dataclass(frozen=True)
class Making:
    """How integer weights are found.

    Attributes
    ----------
    method : MethodName or None
        None chooses the cheapest that is near the best.
    choices : LearningChoices
        Of what is learned.
    corrections : tuple of Correction
        What is corrected after the method, in this order.
    seed, memory_bytes : int
    """

    method: MethodName | None
    choices: LearningChoices
    corrections: tuple[Correction, ...]
    seed: int
    memory_bytes: int

    def named(self, name: MethodName) -> Method:
        """A method with these settings."""
        return method_named(name, choices=self.choices, seed=self.seed, memory_bytes=self.memory_bytes)

    def state(self, plan: Plan) -> Plan:
        """The plan with the choices of the method that it names, and what was corrected after it."""
        how = plan.reconstruction
        assert how is not None
        name = MethodName(how.method)
        stated = self.choices.stated() if name.has_iterations else {}
        how = how.model_copy(update={"choices": stated, "corrections": tuple(map(str, self.corrections))})
        return plan.model_copy(update={"reconstruction": how})

    def of_many(self) -> Method:
        """The method where a dozen plans and more are to be measured: GPTQ where none is named."""
        return self.named(self.method or MethodName.GPTQ)

    def carrier(
        self, network: Network, data: Data, folder: RunFolder, reporter: Reporter
    ) -> Callable[[Method, Plan], Finalized]:
        """What finalizes a plan by a method, with a bar; what it has done is kept in the folder."""

        def carry_out(method: Method, plan: Plan) -> Finalized:
            with reporter.stage("weights") as progress:
                whole = Corrected(method, self.corrections, self.seed)
                return whole.finalize(network, plan, data, progress, folder.weight_parts)

        return carry_out


def making_of(
    method: MethodChoice,
    iterations: int | None,
    granularity: Granularity | None,
    block_loss: BlockLoss | None,
    drop: float | None,
    corrections: Sequence[Correction] | None,
    seed: int,
    memory: str,
) -> Making:
    """How integer weights are found, from arguments as they are written.

    Raises
    ------
    InputError
        Iterations for a method that has none, or choices of learned rounding for another.
    """
    name = None if method is MethodChoice.AUTO else MethodName(method.value)
    if iterations is not None and name is not None and not name.has_iterations:
        raise InputError(
            f"--iterations {iterations} is for what is learned, and --method {name} has none; give --method "
            "brecq, adaround or adaquant, or leave it out"
        )
    choices = LearningChoices(iterations, granularity, block_loss, drop)
    for option, value in (("granularity", granularity), ("block-loss", block_loss), ("drop", drop)):
        # AdaRound is the granularity of layers.
        has = name is MethodName.BRECQ or (name is MethodName.ADAROUND and option != "granularity")
        if value is not None and name is not None and not has:
            kind, others = "learned rounding", "brecq or adaround"
            if option == "granularity":
                kind, others = "rounding that is learned for several layers at once", "brecq"
            raise InputError(
                f"--{option} {value} is for {kind}, and --method {name} has none; give --method {others}, or "
                "leave it out"
            )
    return Making(name, choices, tuple(corrections or ()), seed, bytes_of(memory))


def compared_line(compared: Compared) -> str:
    """What the automatic choice of a method learned, for people."""
    how = "expected from a quick look" if compared.expected else "measured"
    return f"  {compared.name}: loss {compared.loss:.4g}, {how}"
