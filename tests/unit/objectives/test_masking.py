"""Which tokens are masked, and by what."""

import numpy as np
import pytest

from stillhouse.objectives import choose_positions, mask_tokens


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_each_row_gives_its_share_of_candidates_and_at_least_one():
    candidates = np.zeros((4, 40), dtype=bool)
    candidates[0, 1:39] = True  # 38 x 0.15 = 5.7
    candidates[1, 1:21] = True  # 20 x 0.15 = 3
    candidates[2, 5] = True  # 1 x 0.15 rounds to 0
    chosen = choose_positions(candidates, 0.15, generator())
    assert chosen.sum(axis=1).tolist() == [6, 3, 1, 0]
    assert not (chosen & ~candidates).any()


def test_all_candidates_are_equally_likely_and_drawn_anew():
    candidates = np.ones((2000, 20), dtype=bool)
    random = generator()
    first, second = (choose_positions(candidates, 0.15, random) for _ in range(2))
    assert np.abs(first.mean(axis=0) - 0.15).max() < 0.04
    assert (first != second).any(axis=1).mean() > 0.9
    assert (first == choose_positions(candidates, 0.15, generator())).all()


def test_of_the_chosen_80_percent_are_masked_10_replaced_and_10_left():
    random = generator()
    ordinary = np.arange(10, 500)
    ids = random.choice(ordinary, (400, 100))
    chosen = choose_positions(np.ones(ids.shape, dtype=bool), 0.15, random)
    found = mask_tokens(ids, chosen, 4, ordinary, random)
    assert (found[~chosen] == ids[~chosen]).all()
    of_chosen, before = found[chosen], ids[chosen]
    masked, left = of_chosen == 4, of_chosen == before
    assert masked.mean() == pytest.approx(0.8, abs=0.02)
    assert left.mean() == pytest.approx(0.1, abs=0.015)
    replaced = of_chosen[~masked & ~left]
    assert len(replaced) / len(of_chosen) == pytest.approx(0.1, abs=0.015)
    assert set(replaced) <= set(ordinary)
    assert len(set(replaced)) > 200


def test_whole_words_are_chosen_as_far_as_they_fit():
    # Words of 1, 2, 3, 1, 3 tokens between the two ends.
    continues = np.array([[0, 0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0]] * 200, dtype=bool)
    candidates = np.ones_like(continues)
    candidates[:, [0, -1]] = False
    words = [[1], [2, 3], [4, 5, 6], [7], [8, 9, 10]]
    chosen = choose_positions(candidates, 0.3, generator(), continues)  # 3 of 10
    assert (chosen.sum(axis=1) == 3).mean() > 0.75  # else the two single tokens came first, and nothing fits the rest
    assert set(chosen.sum(axis=1)) <= {2, 3}
    taken = np.zeros(5)
    for row in chosen:
        for index, word in enumerate(words):
            assert row[word].all() or not row[word].any()
            taken[index] += row[word].all()
    assert taken.min() > 20


def test_a_word_longer_than_the_share_is_masked_alone():
    continues = np.array([[0, 0, 1, 1, 1, 0]], dtype=bool)
    candidates = np.array([[0, 1, 1, 1, 1, 0]], dtype=bool)
    assert choose_positions(candidates, 0.15, generator(), continues).tolist() == [[0, 1, 1, 1, 1, 0]]


def test_the_rest_of_a_word_that_was_cut_off_is_a_word_of_its_own():
    # After the separator at 2, the piece at 3 continues a word that stands in no sequence.
    continues = np.array([[0, 0, 0, 1, 1, 0]] * 50, dtype=bool)
    candidates = np.array([[0, 1, 0, 1, 1, 0]] * 50, dtype=bool)
    chosen = choose_positions(candidates, 0.34, generator(), continues)  # 1 of 3
    assert (chosen.sum(axis=1) == 1).all() and chosen[:, 1].all()  # the word of two does not fit
    chosen = choose_positions(candidates, 0.67, generator(), continues)  # 2 of 3
    assert {tuple(np.flatnonzero(row)) for row in chosen} == {(1,), (3, 4)}


def longest_run(row: np.ndarray) -> int:
    return max(len(run) for run in "".join("01"[int(flag)] for flag in row).split("0"))


def test_runs_of_words_are_chosen_fewer_words_more_often():
    # Of 60 words three are to be chosen: by one run of 3 (2 of 11 times), by one of 2 and another word, or one by one.
    candidates = np.ones((4000, 60), dtype=bool)
    continues = np.zeros_like(candidates)
    chosen = choose_positions(candidates, 0.05, generator(), continues, 3)
    assert (chosen.sum(axis=1) == 3).all()
    found = np.bincount([longest_run(row) for row in chosen], minlength=4) / len(chosen)
    # A little more than drawn, for neighbours by chance: 59 * 2 of 60 * 59 pairs are some.
    assert found[1:] == pytest.approx([0.27, 0.52, 0.21], abs=0.03)
    single = choose_positions(candidates, 0.05, generator(), continues)
    assert np.mean([longest_run(row) for row in single]) < 1.15


def test_runs_are_of_whole_words_and_end_at_separators():
    # Words of 1, 2 and 1 tokens, a separator, and two words of 1.
    continues = np.array([[0, 0, 1, 0, 0, 0, 0]] * 300, dtype=bool)
    candidates = np.array([[1, 1, 1, 1, 0, 1, 1]] * 300, dtype=bool)
    chosen = choose_positions(candidates, 0.5, generator(), continues, 5)  # 3 of 6
    assert not chosen[:, 4].any()
    assert (chosen[:, 1] == chosen[:, 2]).all()
    found = {tuple(np.flatnonzero(row)) for row in chosen}
    assert {(0, 1, 2), (1, 2, 3), (3, 5, 6)} <= found
    one = choose_positions(candidates, 0.34, generator(), continues, 5)  # 2 of 6
    # The last word before the separator does not go on behind it: it comes with 5 no more often than with 6.
    behind = [tuple(np.flatnonzero(row)) for row in one]
    assert behind.count((5, 6)) > 2 * behind.count((3, 5))


def test_runs_need_words():
    with pytest.raises(ValueError, match="continues"):
        choose_positions(np.ones((1, 4), dtype=bool), 0.5, generator(), None, 2)
