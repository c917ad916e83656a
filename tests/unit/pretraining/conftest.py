"""A corpus small enough to learn in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_corpus import TOKENIZER, documents, write_jsonl

from stillhouse.pretraining import CorpusConfig, prepare_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus."""
    folder = tmp_path_factory.mktemp("corpus")
    source = write_jsonl(folder / "documents.jsonl", documents(240))
    config = CorpusConfig(corpus=str(source), tokenizer=TOKENIZER, validation_fraction=0.2, seed=1)
    prepare_corpus(config, output_dir=folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def wiki() -> Path:
    """English Wikipedia, a document a line."""
    path = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "wiki_en" / "docs.jsonl"
    if not path.is_file():
        pytest.skip(f"no data at {path}")
    return path
