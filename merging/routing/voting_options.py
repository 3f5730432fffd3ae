"""The options for turning a sample's nearest exemplars into weights of task vectors."""

from dataclasses import dataclass

from flexswitch.codecs.errors import UsageError, unknown_name
from flexswitch.merging.routing.mixing import MIXES
from flexswitch.merging.routing.vote import VOTES


@dataclass(frozen=True)
class VotingOptions:
    """How the nearest exemplars vote.

    neighbours: how many vote, None for the adapter's default; vote: one of VOTES; snap: shares of at most
    this are dropped and the others rescaled; mix: one of MIXES. Raises: UsageError on any other value.
    """

    neighbours: int | None = None
    vote: str = "uniform"
    snap: float = 0.0
    mix: str = "share"

    def __post_init__(self) -> None:
        if self.neighbours is not None and self.neighbours < 1:
            raise UsageError(f"--neighbours {self.neighbours}: expected 1 or more")
        if self.vote not in VOTES:
            raise UsageError(f"--vote: {unknown_name('vote', self.vote, VOTES)}")
        if not 0 <= self.snap < 0.5:
            raise UsageError(f"--snap {self.snap}: expected a share from 0 to below 0.5")
        if self.mix not in MIXES:
            raise UsageError(f"--mix: {unknown_name('mix', self.mix, MIXES)}")
