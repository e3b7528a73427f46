"""Files that trainings begin from."""

from pathlib import Path

import pytest

from tests.flows.training.small import write_bert, write_desk


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with two pairs of an image and labels."""
    write_desk(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BERT of 3 blocks and 16 channels with its tokenizer."""
    return write_bert(tmp_path_factory.mktemp("models"))
