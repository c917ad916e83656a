"""`prepare_corpus`: from running text to tokens in Parquet files, in one streamed pass, or two where a tokenizer is
trained first.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.artifacts import CorpusManifest, CorpusSplit, digest_json
from stillhouse.data.corpus import CorpusSource, share_of, split_sentences
from stillhouse.data.faults import Faults, Unreadable
from stillhouse.data.location import public_name
from stillhouse.data.scan import Meter
from stillhouse.errors import InputError, Problem
from stillhouse.pretraining.config import CorpusConfig
from stillhouse.pretraining.shards import ShardWriter
from stillhouse.pretraining.vocabulary import Vocabulary, parse_tokenizer, tokenizer_reference, train
from stillhouse.progress import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["SPLITS", "CorpusReport", "inspect_corpus", "prepare_corpus"]

SPLITS = ("train", "validation")
_READER_VERSION = 1
"""Part of every fingerprint: raised whenever the same bytes would be read as other documents or sentences."""
_SAMPLE = 32 << 20
"""Characters of text that a tokenizer is trained on at most: a random sample of the documents has that many."""
_BATCH = 1 << 18
"""Characters that are tokenised at once."""
_LEAST = 2
"""Documents that each split needs: the next sentence of one may have to come from another."""


@dataclass(frozen=True)
class CorpusReport:
    """What `inspect_corpus` found."""

    fingerprint: str
    """sha256 of the documents that would be used; empty where there are problems."""
    problems: tuple[Problem, ...]
    """All that is wrong; empty where the corpus can be used."""
    documents: int = 0
    """Documents that would be used."""


def inspect_corpus(config: CorpusConfig, step: Step | None = None) -> CorpusReport:
    """Check the settings, and read every document once; nothing is written, and nothing raised."""
    if problems := config.problems():
        return CorpusReport("", tuple(problems))
    faults = Faults()
    count = 0
    content = hashlib.sha256()
    try:
        source = CorpusSource(config.corpus, config.text_column)
        for text in _documents(source, config, faults, Meter(step, "checking", source.total_bytes)):
            count += 1
            content.update(b"%d:" % len(text) + text.encode("utf-8", "surrogatepass"))
    except Unreadable as error:
        faults.add("corpus", f"{public_name(config.corpus)}: {error.what}", error.remedy)
    if not faults and not count:
        faults.add("corpus", f"{public_name(config.corpus)} holds no document.", "Give one with text.")
    fingerprint = "" if faults else digest_json([_READER_VERSION, content.hexdigest()])
    return CorpusReport(fingerprint, tuple(faults.problems()), count)


def prepare_corpus(config: CorpusConfig, *, output_dir: Path, step: Step | None = None) -> CorpusManifest:
    """Write `corpus.json`, `tokenizer/`, `train/*.parquet` and `validation/*.parquet` to `output_dir`.

    A row is a document: `sentences`, a list of lists of token ids without special tokens. No more than one file's
    tokens are in memory, beside the sample that a tokenizer is trained on.

    Args:
        config: what to read.
        output_dir: a folder that is empty or does not exist. It appears in one rename, or not at all.
        step: told of the progress.

    Raises:
        InputError: with everything wrong with the settings, or with the corpus.
    """
    output_dir = Path(output_dir)
    problems = config.problems()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        problems.append(Problem("output folder", f"{output_dir} exists and is not empty.", "Give a new one."))
    if problems:
        raise InputError(problems)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.partial-", dir=output_dir.parent))
    try:
        partial.chmod(0o755)
        source = CorpusSource(config.corpus, config.text_column)
        tokenizer = _tokenizer(source, config, step)
        Vocabulary.of(tokenizer)  # refuses one that lacks a special token
        tokenizer.save_pretrained(partial / "tokenizer")
        splits = _write(partial, source, tokenizer, config, step)
        CorpusManifest(
            producer="prepare-corpus",
            corpus=source.name,
            text_column=config.text_column,
            tokenizer=config.tokenizer,
            vocab_size=len(tokenizer),
            splits=splits,
            fingerprint=source.digest,
            validation_fraction=config.validation_fraction,
            seed=config.seed,
        ).save(partial)
        partial.replace(output_dir)
    except Unreadable as error:
        where = public_name(config.corpus)
        raise InputError(Problem("corpus", f"{where}: {error.what}", error.remedy)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return CorpusManifest.load(output_dir)


def _documents(source: CorpusSource, config: CorpusConfig, faults: Faults, meter: Meter) -> Iterator[str]:
    """The documents to use, counted."""
    for text in itertools.islice(source.documents(faults, meter.on_bytes), config.max_documents or None):
        meter.on_rows(1)
        yield text


def _held_out(text: str, config: CorpusConfig) -> bool:
    return share_of(text, config.seed, "validation") < config.validation_fraction


def _tokenizer(source: CorpusSource, config: CorpusConfig, step: Step | None) -> PreTrainedTokenizerFast:
    """The given one, or one trained on a sample of the documents that are not held out."""
    from stillhouse.models.checkpoints import load_tokenizer

    wanted = parse_tokenizer(config.tokenizer)
    if wanted is None:
        return load_tokenizer(tokenizer_reference(config.tokenizer), "tokenizer")
    faults = Faults()
    rate = _SAMPLE / source.total_bytes if source.total_bytes > _SAMPLE and not config.max_documents else 1.0
    texts: list[str] = []
    size = 0
    for text in _documents(source, config, faults, Meter(step, "reading", source.total_bytes)):
        if _held_out(text, config) or (rate < 1 and share_of(text, config.seed, "tokenizer") >= rate):
            continue
        texts.append(text)
        size += len(text)
        if size >= 2 * _SAMPLE:  # where the size is unknown, or zipped
            break
    if faults:
        raise InputError(faults.problems())
    if not texts:
        raise InputError(Problem("corpus", f"{source.name} holds no document to train on.", "Give one with text."))
    return train(wanted, texts)


def _write(
    folder: Path, source: CorpusSource, tokenizer: PreTrainedTokenizerFast, config: CorpusConfig, step: Step | None
) -> dict[str, CorpusSplit]:
    from tokenizers import Tokenizer

    # A copy that cuts and pads nothing, whatever the tokenizer was saved with.
    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()

    def encode(sentences: list[str]) -> list[list[int]]:
        return [found.ids for found in encoder.encode_batch_fast(sentences, add_special_tokens=False)]

    faults = Faults()
    writers = {split: ShardWriter(folder / split) for split in SPLITS}
    documents = _documents(source, config, faults, Meter(step, "tokenising", source.total_bytes))
    for batch in _batches(documents):
        for text, sentences in _encoded(batch, encode):
            writers["validation" if _held_out(text, config) else "train"].write(sentences)
    for writer in writers.values():
        writer.flush()
    if faults:
        raise InputError(faults.problems())
    _check(writers, source, config)
    return {
        split: CorpusSplit(
            documents=writer.documents, sentences=writer.sentences, tokens=writer.tokens, shards=writer.shards
        )
        for split, writer in writers.items()
    }


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    size = 0
    for text in documents:
        held.append(text)
        size += len(text)
        if size >= _BATCH:
            yield held
            held, size = [], 0
    if held:
        yield held


def _encoded(
    documents: list[str], encode: Callable[[list[str]], list[list[int]]]
) -> Iterator[tuple[str, list[list[int]]]]:
    sentences = [split_sentences(text) for text in documents]
    # White space stood before all but the first, which byte-level tokenizers take as part of the word behind it.
    ids = iter(encode([" " * bool(place) + text for document in sentences for place, text in enumerate(document)]))
    for text, document in zip(documents, sentences, strict=True):
        yield text, [next(ids) for _ in document]


def _check(writers: dict[str, ShardWriter], source: CorpusSource, config: CorpusConfig) -> None:
    counts = {split: writer.documents for split, writer in writers.items()}
    if sum(counts.values()) == 0:
        raise InputError(Problem("corpus", f"{source.name} holds no document.", "Give one with text."))
    for split, count in counts.items():
        if count < _LEAST:
            what = (
                f"of {sum(counts.values()):,} documents, {count} came to {split}, where {_LEAST} are the least "
                f"(validation_fraction is {config.validation_fraction:g})."
            )
            raise InputError(Problem("corpus", what, "Give more documents, or another validation_fraction or seed."))
