"""The tiny model that most of these tests compress, and one artifact trained on it."""

import pytest
from support.training_cases import Reports, TrainingCase, text_case

from flexswitch.codecs.format.container import Artifact


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> TrainingCase:
    return text_case(tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="session")
def reports() -> Reports:
    """What the training of `trained` reports."""
    return Reports()


@pytest.fixture(scope="session")
def trained(case: TrainingCase, reports: Reports, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return case.train(tmp_path_factory.mktemp("trained") / "birds.fsw", reports=reports)
