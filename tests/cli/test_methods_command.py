"""`methods` lists what is registered, and shows one method's settings."""

import json

from flexswitch.merging.methods.registry import METHODS


def test_every_method_is_listed_with_what_it_needs_and_its_source(flexswitch):
    lines = flexswitch("methods").out.splitlines()[2:]
    assert len(lines) == len(METHODS)
    for line, method in zip(lines, METHODS, strict=True):
        assert line.split()[:2] == [method.name, method.kind]
        assert method.source in line
        assert all(need in line for need in method.needs)


def test_one_method_is_shown_with_the_default_range_and_meaning_of_its_settings(flexswitch):
    outcome = flexswitch("methods", "t-switch")
    assert outcome.status == 0
    (row,) = outcome.out.splitlines()[3:]
    assert row.split()[:2] == ["drop", "0.6"]
    assert "a number of at least 0 and below 1" in row
    assert row.endswith("Share of each sign's entries to drop.")


def test_a_method_without_settings_says_so(flexswitch):
    assert flexswitch("methods", "average").out.splitlines()[-1] == "It has no settings."


def test_json_holds_all_methods_or_one_with_its_settings(flexswitch):
    listed = json.loads(flexswitch("methods", "--json").out)["methods"]
    assert [each["name"] for each in listed] == [method.name for method in METHODS]
    document = json.loads(flexswitch("methods", "dare", "--json").out)
    assert document["kind"] == "compression"
    assert [each["name"] for each in document["settings"]] == ["drop", "bits", "seed"]
    assert document["settings"][1]["expected"] == "16 or 32"


def test_an_unknown_method_is_refused_with_the_nearest(flexswitch):
    outcome = flexswitch("methods", "drae")
    assert outcome.status == 2
    assert outcome.error.startswith("no method is named 'drae'; did you mean 'dare'?")
