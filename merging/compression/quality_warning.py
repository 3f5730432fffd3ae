"""Warns where a compressed model may answer otherwise than the fine-tuned one.

Source: docs/methods.md §1, benchmarks/forecast/run.py.
"""

from flexswitch.codecs.format.records import ArtifactHeader

# Of the compressions of benchmarks/forecast that keep at least 95 % of the answers nearly all below this
# relative error do, and a quarter of those beyond it.
LARGEST_SAFE = 0.5
ENOUGH = 0.95


def quality_warning(header: ArtifactHeader) -> str | None:
    """Returns a warning, None where an artifact is likely to keep 95 % of the fine-tuned model's answers.

    Where a training has measured answers, those it was not trained on count, else the relative error. An
    artifact made within a budget keeps what was asked for.
    """
    if header.budget is not None:
        return None
    training, error = header.training, header.error
    if training is not None and header.method.settings.get("objective") != "mse":
        kept, on = training.after.held_out_agreement, f"{training.held_out} held-out examples"
        if kept is None:
            kept, on = training.after.agreement, f"its own {training.exemplars} exemplars"
        if kept >= ENOUGH:
            return None
        return (
            f"warning: on {on} only {100 * kept:.1f} % of the answers are the fine-tuned model's; give "
            "a larger --target-size, or more exemplars"
        )
    if error is None or error.relative <= LARGEST_SAFE:
        return None
    return (
        f"warning: the relative error {error.relative:g} is above {LARGEST_SAFE:g}, beyond which most models "
        f"gave under {100 * ENOUGH:.0f} % of the fine-tuned model's answers; measure it with `flexswitch "
        "eval`, keep more, or learn what to keep: --method flexswitch --base BASE --exemplars DIR"
    )
