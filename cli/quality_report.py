"""Reports of how close a compressed task is to the fine-tuned model."""

from typing import TYPE_CHECKING

from flexswitch.cli.console import percent, table
from flexswitch.cli.table import Table

if TYPE_CHECKING:
    from flexswitch.codecs.format.quality_records import BudgetRecord, ErrorRecord, TrainingRecord
    from flexswitch.codecs.format.records import ArtifactHeader


def error_line(error: "ErrorRecord") -> str:
    """Returns one line on how far the stored tensors are from those that they stand for."""
    line = f"relative error {error.relative:g} of all tensors"
    if error.worst:
        worst = ", ".join(f"{name} {found:g}" for name, found in error.worst.items())
        line += f"; worst: {worst}"
    return line


def budget_line(header: "ArtifactHeader", budget: "BudgetRecord") -> str:
    """Returns one line on what was asked for, and the setting that was found."""
    taken = header.method.settings.get(budget.setting)
    return (
        f"smallest found for agreement={100 * budget.asked:.6g}%: {budget.setting}={taken} keeps "
        f"{percent(budget.kept)} of the answers to {budget.examples} held-out examples"
    )


def budget_table(header: "ArtifactHeader", budget: "BudgetRecord") -> Table:
    """Returns the tries of a search in their order, with a mark at the one that was taken."""
    taken = header.method.settings.get(budget.setting)
    rows = table("tries", budget.setting, "bytes", "agreement", "")
    for each in budget.tries:
        mark = "taken" if each.value == taken else ""
        rows.add_row(str(each.value), f"{each.bytes:,}", percent(each.agreement), mark)
    return rows


def training_line(header: "ArtifactHeader", training: "TrainingRecord") -> str:
    """Returns one line on how close the compressed model came to the fine-tuned one."""
    before, after = training.before, training.after
    line = (
        f"learned from {training.exemplars} exemplars: divergence from the fine-tuned model "
        f"{before.divergence:g} → {after.divergence:g}"
    )
    if _has_answers(header):
        line += f", the same answer to {percent(after.agreement)}"
    if after.held_out_divergence is not None and after.held_out_agreement is not None:
        line += f"; of {training.held_out} held out: {after.held_out_divergence:g}"
        if _has_answers(header):
            line += f", {percent(after.held_out_agreement)}"
    return line


def training_table(header: "ArtifactHeader", training: "TrainingRecord") -> Table:
    """Returns divergence and agreement, before and after, on the exemplars and on those held out."""
    before, after = training.before, training.after
    rows = table(
        "against the fine-tuned model", "on", "examples", "divergence before", "after", "agreement before",
        "after",
    )  # fmt: skip

    def add(name: str, count: int, divergences: list[float], agreements: list[float]) -> None:
        shares = [percent(share) if _has_answers(header) else "–" for share in agreements]
        rows.add_row(name, str(count), *(f"{value:g}" for value in divergences), *shares)

    add("exemplars", training.exemplars, [before.divergence, after.divergence],
        [before.agreement, after.agreement])  # fmt: skip
    divergences = [before.held_out_divergence, after.held_out_divergence]
    agreements = [before.held_out_agreement, after.held_out_agreement]
    if training.held_out:
        add("held out", training.held_out, [value for value in divergences if value is not None],
            [share for share in agreements if share is not None])  # fmt: skip
    return rows


def _has_answers(header: "ArtifactHeader") -> bool:
    """Returns whether answers were compared; training on features compares none."""
    return header.method.settings.get("objective") != "mse"
