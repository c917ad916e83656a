"""Component `prepare_corpus`."""

from kfp import dsl

from stillhouse.components.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def prepare_corpus(
    corpus: str,
    text_column: str,
    tokenizer: str,
    max_documents: int,
    validation_fraction: float,
    seed: int,
    fingerprint: str,
    code_version: str,
    documents: dsl.Output[dsl.Dataset],
):
    """Train a tokenizer on the corpus, or take a given one, and write every document as sentences of token ids.

    Args:
        corpus: Source of the documents.
        text_column: Column that holds a document's text, in JSONL and Parquet.
        tokenizer: How the tokenizer is trained, or whose is taken.
        max_documents: Read so many documents; 0 reads all.
        validation_fraction: Share of the documents held out.
        seed: Seed of what is held out.
        fingerprint: Of the corpus's present content, so that a changed corpus is read again.
        code_version: Of the code behind this step, so that changed code runs again.
        documents: The tokenizer and the documents, with `corpus.json`.
    """
    parameters = dict(locals())

    from pathlib import Path

    from stillhouse.inspection.pretraining import corpus_config
    from stillhouse.pretraining import prepare_corpus as library
    from stillhouse.progress import step

    with step("prepare-corpus") as watch:
        library(corpus_config(parameters), output_dir=Path(documents.path), step=watch)
