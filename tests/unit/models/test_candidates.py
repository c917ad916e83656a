"""How extra candidates are written, and what they are called."""

import pytest

from stillhouse.errors import InputError
from stillhouse.models.candidates import Candidate, parse_candidate, parse_candidates


@pytest.mark.parametrize(
    ("text", "name", "checkpoint"),
    [
        ("hub://FacebookAI/roberta-base", "roberta-base", "hub://FacebookAI/roberta-base"),
        ("hub://answerdotai/ModernBERT-base@v1", "modernbert-base", "hub://answerdotai/ModernBERT-base@v1"),
        ("hub://google/bert_uncased_L-2_H-128_A-2", "bert-uncased-l-2-h-128-a", None),
        ("minilm://", "minilm", None),
        ("scratch://bert?num_hidden_layers=2&hidden_act=relu", "bert", None),
        ("/models/My BART/", "my-bart", None),
        ("bart=/models/x=1", "bart", "/models/x=1"),
        (" small-one = hub://a/b ", "small-one", "hub://a/b"),
        ("models/a=b", "a-b", "models/a=b"),
    ],
)
def test_the_name_is_given_or_derived(text: str, name: str, checkpoint: str | None):
    found = parse_candidate(text)
    assert (found.name, found.checkpoint) == (name, checkpoint or text)
    # What a step is handed reads the same again.
    assert parse_candidate(str(found)) == found


@pytest.mark.parametrize("text", ["", "x=", "Upper=hub://a/b", "-x=hub://a/b", f"{'x' * 25}=hub://a/b", "/", "a.b=/x"])
def test_what_cannot_name_a_candidate_is_refused(text: str):
    with pytest.raises(InputError) as caught:
        parse_candidate(text)
    assert caught.value.problems[0].where == "extra_candidates"


def test_everything_wrong_is_told_at_once_and_the_rest_is_kept():
    items = ["hub://a/roberta-base", "hub://b/roberta-base", 7, "teacher=hub://a/b", "champion=/x", "x=teacher://",
             "=y", "other=hub://b/roberta-base"]  # fmt: skip
    found, problems = parse_candidates(items)
    assert found == [Candidate("roberta-base", "hub://a/roberta-base"), Candidate("other", "hub://b/roberta-base")]
    assert len(problems) == 6
    assert {problem.where for problem in problems} == {"extra_candidates"}
    said = "\n".join(problem.what for problem in problems)
    twice = "'hub://b/roberta-base' and 'hub://a/roberta-base'"
    for part in (twice, "7 is not text", "'teacher'", "'champion'", "'=y'"):
        assert part in said
    assert parse_candidates([]) == ([], [])
