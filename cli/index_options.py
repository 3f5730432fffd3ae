"""What the options of `flexswitch index` come to."""

from collections.abc import Sequence

from flexswitch.cli.arguments import choice
from flexswitch.codecs.errors import UsageError
from flexswitch.merging.routing.index_build import Settings
from flexswitch.merging.routing.projection import NORMALISATIONS

_PER_TASK, _RANK = 100, 32


def index_settings(
    per_task: int | None, seed: int | None, normalise: str | None, metric: str | None, rank: int | None
) -> Settings:
    """Returns the settings of a new index; None is an option's default. Raises: UsageError."""
    learned = choice("--metric", metric or "learned", ("learned", "euclidean")) == "learned"
    if rank is not None and not learned:
        raise UsageError("--rank: is the learned metric's, and --metric euclidean has none; leave one out")
    return Settings(
        per_task=per_task or _PER_TASK,
        seed=seed or 0,
        normalise=choice("--normalise", normalise or "centred", NORMALISATIONS),
        rank=(rank or _RANK) if learned else None,
    )


def refuse_beside_add(given: Sequence[str]) -> None:
    """Raises: UsageError where --add is given options of a new index."""
    if given:
        raise UsageError(
            f"{given[0]} beside --add: tasks are added under the index's own settings; leave it out"
        )
