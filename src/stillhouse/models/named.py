"""The papers' architectures by name.

Sources: Devlin et al. 2018, arXiv:1810.04805, section 3 (BERT); Sanh et al. 2019, arXiv:1910.01108, sections 3 and 4
(DistilBERT); Lan et al. 2019, arXiv:1909.11942, section 3.1 and table 1 (ALBERT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["NAMED", "PUBLISHED", "Published"]

_BERT_VOCABULARY = 30522
"""English, uncased WordPiece: what was released with both papers. The papers themselves say 30,000."""
_ALBERT_VOCABULARY = 30000


def _bert(layers: int, hidden: int) -> tuple[str, dict[str, Any]]:
    return "bert", {
        "vocab_size": _BERT_VOCABULARY,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }


def _albert(layers: int, hidden: int) -> tuple[str, dict[str, Any]]:
    return "albert", {
        "vocab_size": _ALBERT_VOCABULARY,
        "embedding_size": 128,
        "num_hidden_layers": layers,
        "num_hidden_groups": 1,
        "hidden_size": hidden,
        # H/64, as section 3.1 says. The released xlarge has 16 heads of 128, which changes no parameter count.
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
        # Section 4.8: no dropout. That of a classifier on top is not the architecture's.
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": _bert(12, 768),
    "bert-large": _bert(24, 1024),
    "distilbert-base": (
        "distilbert",
        {"vocab_size": _BERT_VOCABULARY, "n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072},
    ),
    "albert-base": _albert(12, 768),
    "albert-large": _albert(24, 1024),
    "albert-xlarge": _albert(24, 2048),
    "albert-xxlarge": _albert(12, 4096),
}
"""Family and config fields of each; what is not named here is the family's own default."""


@dataclass(frozen=True)
class Published:
    """What a paper says of one of its architectures."""

    parameters: int
    """As printed there, in the paper's own rounding."""
    source: str
    note: str = ""
    """Why the architecture, built as described, has another count; empty where rounding explains it."""


_BERT = "Devlin et al. 2018, section 3"
_ALBERT = "Lan et al. 2019, table 1"
PUBLISHED: dict[str, Published] = {
    "bert-base": Published(110_000_000, _BERT),
    "bert-large": Published(
        340_000_000,
        _BERT,
        "The paper rounds to tens of millions. Lan et al. 2019 count the same model as 334M: their vocabulary has "
        "30,000 pieces, not 30,522, and they leave the pooler out.",
    ),
    "distilbert-base": Published(66_000_000, "Sanh et al. 2019, table 3"),
    "albert-base": Published(12_000_000, _ALBERT),
    "albert-large": Published(18_000_000, _ALBERT),
    "albert-xlarge": Published(
        60_000_000, _ALBERT, "The paper rounds to tens of millions; the released checkpoint has 58.7M as well."
    ),
    "albert-xxlarge": Published(
        235_000_000,
        _ALBERT,
        "Section 3.1 gives 222.6M with these sizes, and the released checkpoint has as many; the heads for masked "
        "words and sentence order, which the other counts leave out, would add 0.6M. What makes up the rest of the "
        "235M, the paper does not say.",
    ),
}
