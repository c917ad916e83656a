"""The gate: every branch of it, with probabilities and latencies made for the purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillhouse.evaluation.config import EvaluateConfig
from stillhouse.evaluation.promotion import Champion, Contender, Promotion, latency_ratio, promotion_gate
from stillhouse.tasks import get_task

TASK = get_task("classification")
ROWS = 1000
LABELS = np.arange(ROWS) % 2


def answers(wrong: slice) -> NDArray[np.float32]:
    """Probabilities [n, 2] that are right but for the rows of `wrong`."""
    right = LABELS.copy()
    right[wrong] = 1 - right[wrong]
    return np.where(np.arange(2)[None] == right[:, None], 0.9, 0.1).astype(np.float32)


def latencies(p95: float, seed: int) -> NDArray[np.float64]:
    """[3, 200] seconds around `p95` ms, on texts of equal cost and a noisy machine."""
    noise = np.random.default_rng(seed).gamma(20, 1 / 20, size=(3, 200))
    return p95 / 1000 * noise / np.percentile(noise, 95)


def contender(
    wrong: slice, *, p95: float = 10.0, size: int = 10_000_000, retention: float = 1.0, digest: str = "a", seed: int = 1
) -> Contender:
    probabilities = answers(wrong)
    entry = {
        "metrics": TASK.metrics(probabilities, LABELS),
        "retention": retention,
        "bytes": size,
        "latency_ms": {"p95": p95},
        "package_digest": digest,
    }
    return Contender(entry=entry, probabilities=probabilities, latencies=latencies(p95, seed))


def gate(challenger: Contender, champion: Contender | None, *, tried: int = 6, **settings: Any) -> Promotion:
    reigning = Champion(version="3", measured=champion) if champion else None
    undeployable = settings.pop("undeployable", "")
    return promotion_gate(
        EvaluateConfig(**{"policy": "quality", **settings}),
        TASK,
        challenger=challenger,
        champion=reigning,
        labels=LABELS,
        tried=tried,
        undeployable=undeployable,
    )


CHAMPION = contender(slice(0, 100), digest="champion", seed=2)  # 0.900


def test_the_first_version_is_promoted() -> None:
    found = gate(contender(slice(0, 100)), None)
    assert (found.decision, found.champion_version, found.difference) == ("promote", "", None)
    assert "No other version is champion" in found.reason


def test_what_may_not_be_served_is_not_promoted_even_as_the_first() -> None:
    for champion, mode in ((None, "better"), (CHAMPION, "always")):
        found = gate(contender(slice(0, 10)), champion, undeployable="It does not beat tf-idf.", promotion=mode)
        assert found.decision == "keep" and found.reason.startswith("It does not beat tf-idf.")


def test_the_same_package_stays_whatever_the_mode() -> None:
    for mode in ("better", "always"):
        found = gate(contender(slice(0, 100), digest="champion"), CHAMPION, promotion=mode)
        assert found.decision == "keep" and "version 3, which stays as it is" in found.reason


def test_by_quality_a_clearly_better_one_is_promoted_with_the_figures() -> None:
    found = gate(contender(slice(0, 50)), CHAMPION)  # 0.950, right on 50 rows more
    assert found.decision == "promote"
    assert found.difference == pytest.approx(0.05)
    assert found.interval is not None and 0 < found.interval[0] < 0.05 < found.interval[1]
    assert found.p_value is not None and found.p_value < 1e-9
    for part in ("0.9500", "0.9000", "version 3", "1,000 test rows", "+0.0500", "McNemar", "significantly better"):
        assert part in found.reason, part


def test_better_by_less_than_the_noise_is_not_promoted() -> None:
    # 40 rows only the one has right, 30 only the other: 0.910 against 0.900.
    found = gate(contender(slice(40, 130)), contender(slice(0, 100), digest="x"), tried=1)
    assert found.decision == "keep" and found.difference == pytest.approx(0.01)
    assert found.interval is not None and found.interval[0] < 0 < found.interval[1]
    assert "not more than noise" in found.reason


def test_a_worse_one_is_not_promoted() -> None:
    found = gate(contender(slice(0, 150)), CHAMPION)
    assert found.decision == "keep" and "This is worse" in found.reason


def test_of_accuracy_mcnemar_must_agree_with_the_bootstrap() -> None:
    # Six rows to none: the bootstrap's interval lies above zero, but the exact test gives p = 0.03.
    challenger, champion = contender(slice(6, 100)), contender(slice(0, 100), digest="x")
    assert gate(challenger, champion, tried=1).decision == "promote"
    strict = gate(challenger, champion, tried=1, significance=0.03, bootstrap_samples=2000)
    assert strict.interval is not None and strict.interval[0] > 0
    assert strict.p_value == pytest.approx(2 / 2**6) and strict.decision == "keep"
    # Of another metric, the bootstrap decides alone.
    other = gate(challenger, champion, tried=1, significance=0.03, bootstrap_samples=2000, quality_metric="macro_f1")
    assert other.decision == "promote" and other.p_value == pytest.approx(2 / 2**6)


def test_the_best_of_several_must_be_better_by_more() -> None:
    challenger, champion = contender(slice(7, 100)), contender(slice(0, 100), digest="x")
    assert gate(challenger, champion, tried=1).decision == "promote"  # p = 0.016
    of_six = gate(challenger, champion, tried=6)
    assert of_six.decision == "keep" and of_six.level == pytest.approx(0.05 / 6)
    # Where it was not picked by its quality, the test is of one.
    assert gate(challenger, champion, tried=6, policy="memory").decision == "promote"


def test_always_promotes_and_still_shows_the_comparison() -> None:
    found = gate(contender(slice(0, 150)), CHAMPION, promotion="always")
    assert found.decision == "promote" and found.difference == pytest.approx(-0.05)
    assert "set to always" in found.reason and "This is worse" in found.reason


@pytest.mark.parametrize(("mode", "decision"), [("better", "keep"), ("always", "promote")])
def test_a_champion_that_cannot_be_compared(mode: str, decision: str) -> None:
    found = promotion_gate(
        EvaluateConfig(promotion=mode),
        TASK,
        challenger=contender(slice(0, 10)),
        champion=Champion(version="3", incomparable="its labels are others."),
        labels=LABELS,
        tried=2,
    )
    assert (found.decision, found.champion_version) == (decision, "3")
    if mode == "better":
        assert "its labels are others. To replace it" in found.reason


@pytest.mark.parametrize(
    ("p95", "wrong", "decision", "says"),
    [
        (6.0, slice(0, 110), "promote", "% less"),  # faster, though a little worse
        (20.0, slice(0, 50), "keep", "% more"),  # slower, though better
        (9.8, slice(0, 110), "keep", "no difference beyond noise"),
        (9.8, slice(0, 50), "promote", "significantly better"),  # as fast, and better
    ],
)
def test_real_time(p95: float, wrong: slice, decision: str, says: str) -> None:
    found = gate(contender(wrong, p95=p95), CHAMPION, policy="real-time")
    assert found.decision == decision and says in found.reason
    assert found.latency_ratio == pytest.approx(p95 / 10, rel=0.1)


def test_a_small_difference_of_latency_does_not_count_however_certain() -> None:
    quick = contender(slice(0, 100), p95=10.0, seed=2)
    found = gate(Contender(entry=quick.entry | {"package_digest": "b"}, probabilities=quick.probabilities,
                           latencies=CHAMPION.latencies * 0.96), CHAMPION, policy="real-time")  # fmt: skip
    assert found.latency_interval is not None and found.latency_interval[1] < 1
    assert found.decision == "keep" and "no difference beyond noise" in found.reason


@pytest.mark.parametrize(
    ("size", "wrong", "decision", "says"),
    [
        (5_000_000, slice(0, 110), "promote", "50% less"),
        (20_000_000, slice(0, 50), "keep", "100% more"),
        (9_800_000, slice(0, 110), "keep", "no difference beyond noise"),
        (10_200_000, slice(0, 50), "promote", "significantly better"),
    ],
)
def test_memory(size: int, wrong: slice, decision: str, says: str) -> None:
    found = gate(contender(wrong, size=size), CHAMPION, policy="memory")
    assert found.decision == decision and says in found.reason
    assert found.bytes_ratio == pytest.approx(size / 10_000_000)


@pytest.mark.parametrize("policy", ["real-time", "memory"])
@pytest.mark.parametrize(("wrong", "decision"), [(slice(0, 50), "promote"), (slice(0, 99), "keep")])
def test_a_champion_that_fell_behind_gives_way_to_a_better_one_only(policy: str, wrong: slice, decision: str) -> None:
    fallen = contender(slice(0, 100), p95=2.0, size=1000, retention=0.9, digest="x")
    found = gate(contender(wrong, p95=30.0, size=50_000_000), fallen, policy=policy)
    assert found.decision == decision and "no longer keeps 97%" in found.reason and "90.0%" in found.reason


def test_equal_models_on_a_noisy_machine_are_rarely_told_apart() -> None:
    told = 0
    for seed in range(40):
        _, spread = latency_ratio(latencies(10, seed), latencies(10, seed + 1000), samples=200, seed=1, level=0.05)
        told += not spread.low <= 1 <= spread.high
    assert told <= 6


def test_configuration_problems_of_the_gate() -> None:
    config = EvaluateConfig(promotion="sometimes", significance=1.5)
    assert {problem.where for problem in config.problems(TASK)} == {"promotion", "significance"}
    (problem,) = EvaluateConfig(significance=0.001).problems(TASK)
    assert problem.where == "bootstrap_samples" and "5000 or more" in problem.remedy
    assert EvaluateConfig(bootstrap_samples=100).problems(TASK) == []
