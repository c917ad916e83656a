from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.split import DROPPED, allocate, assign_rows, mix


def test_mix_is_splitmix64():
    # The first outputs of the reference generator for state 0 are mix(0, salt=0), then the state advanced once.
    assert [int(v) for v in mix(np.zeros(1, np.uint64), 0)] == [0xE220A8397B1DCDAF]
    assert [int(v) for v in mix(np.zeros(1, np.uint64), 1)] == [0x6E789E6AA1B965F4]


def test_allocate_by_hand():
    counts = np.array([70, 20, 10])
    assert allocate(counts, 10, most=counts).tolist() == [7, 2, 1]
    assert allocate(counts, 5, most=counts).tolist() == [4, 1, 0]  # 3.5, 1.0, 0.5: the tie goes to the lower id
    assert allocate(np.array([98, 1, 1]), 10, most=np.array([98, 1, 1]), least=1).tolist() == [8, 1, 1]
    assert allocate(np.array([98, 1, 1]), 2, most=np.array([98, 1, 1]), least=1).tolist() == [2, 0, 0]
    assert allocate(np.array([2, 2]), 10, most=np.array([1, 0])).tolist() == [1, 0]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 300), st.integers(0, 1))
def test_allocate_keeps_its_bounds(counts, total, least):
    most = np.array(counts)
    share = allocate(most, total, most=most, least=least)
    assert (share <= most).all() and (share >= 0).all()
    assert share.sum() == min(total, most.sum())
    if least * (most > 0).sum() <= min(total, most.sum()):
        assert (share[most > 0] >= least).all()


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=80),
    st.none() | st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=20),
    st.none() | st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=20),
    st.integers(0, 5),
)
def test_no_text_is_ever_in_two_splits(train, validation, test, seed):
    given_rows = {"train": train, "validation": validation, "test": test}
    rows = {name: part for name, part in given_rows.items() if part is not None}
    hashes = {name: np.array([text for text, _ in part], dtype=np.uint64) for name, part in rows.items()}
    labels = {name: np.array([label for _, label in part], dtype=np.int16) for name, part in rows.items()}
    result = assign_rows(
        hashes, labels, 3, fractions={"validation": 0.2, "test": 0.3}, limits={"train": 0, "test": 7}, seed=seed
    )
    seen: dict[int, int] = {}
    for name, codes in result.codes.items():
        for text, code in zip(hashes[name].tolist(), codes.tolist(), strict=True):
            if code != DROPPED:
                assert seen.setdefault(text, code) == code
    assert result.counts["test"].sum() <= 7
    total = sum(int(counts.sum()) for counts in result.counts.values())
    assert total == sum(int((codes != DROPPED).sum()) for codes in result.codes.values())
