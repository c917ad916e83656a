"""Pretraining: from running text to a BERT, an ALBERT or a DistilBERT that `finetune` and `distill` take."""

from stillhouse.pretraining.config import OBJECTIVES, CorpusConfig, PretrainConfig
from stillhouse.pretraining.corpus import CorpusReport, inspect_corpus, prepare_corpus
from stillhouse.pretraining.measure import perplexity, sentence_accuracy
from stillhouse.pretraining.steps import pretrain

__all__ = [
    "OBJECTIVES",
    "CorpusConfig",
    "CorpusReport",
    "PretrainConfig",
    "inspect_corpus",
    "perplexity",
    "prepare_corpus",
    "pretrain",
    "sentence_accuracy",
]
