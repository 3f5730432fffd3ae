"""Reports of a run: a JSON document, JUnit XML for CI systems, and a table for a job's summary."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from flexswitch.codecs.errors import ExpectationError, FlexswitchError, UsageError
from flexswitch.codecs.format.atomic import atomic_file
from flexswitch.recipes.expectations import check_expectations
from flexswitch.recipes.lock import StepRecord
from flexswitch.recipes.prepared import Prepared
from flexswitch.recipes.schedule import Outcome

_SUFFIXES = (".json", ".xml", ".md")


def steps_document(prepared: Prepared, outcome: Outcome) -> dict[str, Any]:
    """Returns what became of each step: status is done, unchanged, failed or waiting."""
    steps = []
    for number, step in enumerate(prepared.steps):
        failure, record = outcome.failures.get(number), _record(prepared, outcome, number)
        steps.append({
            "name": step.name,
            "command": step.line,
            "status": _status(prepared, outcome, number),
            "error": failure.message if failure else None,
            "seconds": round(outcome.seconds.get(number, 0.0), 3),
            "result": record.result if record else None,
        })  # fmt: skip
    return {"recipe": str(prepared.graph.plan.source), "steps": steps}


def check_report(path: Path) -> None:
    """Raises: UsageError where a report's name does not say its form."""
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"--report {path}: expected a name that ends in {', '.join(_SUFFIXES)}")


def write_report(path: Path, prepared: Prepared, outcome: Outcome) -> None:
    """Writes a report in the form that its name says; an older one is replaced."""
    check_report(path)
    document = steps_document(prepared, outcome)
    if path.suffix == ".json":
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    elif path.suffix == ".xml":
        text = _junit(document)
    else:
        text = "\n".join(_table(prepared, outcome, document)) + "\n"
    with atomic_file(path, overwrite=True) as partial:
        partial.write_text(text, encoding="utf-8")


def _status(prepared: Prepared, outcome: Outcome, number: int) -> str:
    if number in outcome.failures:
        return "failed"
    if number in outcome.seconds:
        return "unchanged" if number in outcome.was_done else "done"
    return "waiting" if number in prepared.state.reasons else "unchanged"


def _record(prepared: Prepared, outcome: Outcome, number: int) -> StepRecord | None:
    name = prepared.steps[number].name
    if name in outcome.records:
        return outcome.records[name]
    return None if number in prepared.state.reasons else prepared.records.get(name)


def _junit(document: dict[str, Any]) -> str:
    """Returns the steps as test cases: a waiting one is skipped."""
    statuses = [step["status"] for step in document["steps"]]
    suite = ElementTree.Element("testsuite", {
        "name": document["recipe"],
        "tests": str(len(statuses)),
        "failures": str(statuses.count("failed")),
        "errors": "0",
        "skipped": str(statuses.count("waiting")),
        "time": f"{sum(step['seconds'] for step in document['steps']):.3f}",
    })  # fmt: skip
    for step in document["steps"]:
        attributes = {"classname": document["recipe"], "name": step["name"], "time": f"{step['seconds']:.3f}"}
        case = ElementTree.SubElement(
            suite, "testcase", {key: _xml(text) for key, text in attributes.items()}
        )
        if step["status"] == "failed":
            failure = ElementTree.SubElement(case, "failure", {"message": _xml(step["error"])})
            failure.text = _xml(f"$ {step['command']}\n{step['error']}")
        elif step["status"] == "waiting":
            ElementTree.SubElement(case, "skipped")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Returns a text without the characters that XML cannot hold."""
    return "".join(
        each if each in "\t\n" or each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text
    )


def _table(prepared: Prepared, outcome: Outcome, document: dict[str, Any]) -> Iterator[str]:
    """Yields a line for each step, with the figures of those that made an artifact."""
    yield f"### {_cell(document['recipe'])}"
    yield ""
    yield "| step | task | bytes | bits per parameter | agreement | expectation | status |"
    yield "| --- | --- | ---: | ---: | ---: | --- | --- |"
    for number, step in enumerate(document["steps"]):
        result = step["result"] or {}
        stored, bits = result.get("bytes"), result.get("bits_per_parameter")
        after = (result.get("training") or {}).get("after") or {}
        agreement = after.get("held_out_agreement", after.get("agreement"))
        agreement = (result.get("budget") or {}).get("kept", agreement)
        cells = [
            _cell(step["name"]),
            _cell(str(result.get("task", ""))),
            f"{stored:,}" if isinstance(stored, int) else "",
            f"{bits:.3f}" if isinstance(bits, float) else "",
            f"{100 * agreement:.1f} %" if isinstance(agreement, float) else "",
            _cell(_expectation(prepared, outcome, number)),
            step["status"] if step["error"] is None else f"failed: {_cell(step['error'])}",
        ]
        yield f"| {' | '.join(cells)} |"


def _expectation(prepared: Prepared, outcome: Outcome, number: int) -> str:
    step, record = prepared.steps[number], _record(prepared, outcome, number)
    if not step.expect:
        return ""
    if record is None:
        return "not known"
    try:
        check_expectations(step, record.result)
    except ExpectationError as error:
        return f"not met: {error}"
    except FlexswitchError as error:
        return str(error)
    return "met"


def _cell(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text).replace("|", "\\|")
