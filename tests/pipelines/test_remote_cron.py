"""Cron expressions as Kubeflow Pipelines reads them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from stillhouse.pipelines.remote.cron import Cron, constant_shift
from stillhouse.pipelines.remote.plans import plan

UTC = ZoneInfo("UTC")
NOW = datetime(2030, 1, 1, 12, 0, tzinfo=timezone.utc)  # a Tuesday


@pytest.mark.parametrize(
    ("text", "fields", "words"),
    [
        ("0 6 * * 1-5", "0 0 6 * * 1-5", "Monday to Friday at 06:00"),
        ("0 0 6 * * mon,THU", "0 0 6 * * mon,THU", "Monday, Thursday at 06:00"),
        ("15 2,14 * * *", "0 15 2,14 * * *", "daily at 02:15 and 14:15"),
        ("@daily", "0 0 0 * * *", "daily at 00:00"),
        ("5 * * * ?", "0 5 * * * ?", "hourly, 5 minutes past"),
        ("0 3 1 * *", "0 0 3 1 * *", "on day 1 of the month at 03:00"),
        ("30 0 6 * * 1", "30 0 6 * * 1", "cron 30 0 6 * * 1"),
        ("*/10 * * * *", "0 */10 * * * *", "cron 0 */10 * * * *"),
        ("0 0 4 1 JAN *", "0 0 4 1 JAN *", "cron 0 0 4 1 JAN *"),
    ],
)
def test_five_fields_get_a_second_and_simple_ones_words(text: str, fields: str, words: str):
    cron = Cron.parse(text)
    assert (str(cron), cron.words) == (fields, words)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("* * * *", "4 fields"),
        ("0 24 * * *", "'24'"),
        ("0 6 * * 7", "Sunday is 0"),
        ("0 6 * * 5-1", "rising"),
        ("0 6 * * xyz", "not one of|nor one of"),
        ("*/0 6 * * *", "step"),
        ("0 6 L * *", "'L' is not a number"),
        ("CRON_TZ=Europe/Berlin 0 6 * * *", "--time-zone"),
        ("@every 1h", "@every"),
        ("0 6 31 2 *", "no year"),
        ("", "0 fields"),
        ("0 ٣ * * *", "not a number"),
    ],
)
def test_what_kubeflow_would_refuse_or_misread_is_refused(text: str, why: str):
    with pytest.raises(ValueError, match=why):
        Cron.parse(text)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("0 6 * * *", "2030-01-02T06:00:00+00:00"),
        ("0 13 * * *", "2030-01-01T13:00:00+00:00"),
        ("0 12 * * *", "2030-01-02T12:00:00+00:00"),  # after, not at
        ("0 0 29 2 *", "2032-02-29T00:00:00+00:00"),
        ("0 0 13 * 5", "2030-01-04T00:00:00+00:00"),  # the 13th or a Friday
        ("0 0 */2 * 5", "2030-01-11T00:00:00+00:00"),  # a star in it: an odd day and a Friday
    ],
)
def test_when_it_is_due_next(text: str, due: str):
    assert Cron.parse(text).following(NOW, UTC) == datetime.fromisoformat(due)


def test_an_hour_that_the_clocks_skip_is_passed_over():
    berlin = ZoneInfo("Europe/Berlin")
    before = datetime(2030, 3, 30, 12, tzinfo=berlin)
    assert Cron.parse("30 2 * * *").following(before, berlin) == datetime(2030, 4, 1, 2, 30, tzinfo=berlin)


@pytest.mark.parametrize(
    ("text", "hours", "moved"),
    [
        ("0 12 * * *", -9, "0 0 3 * * *"),
        ("0 6 * * 1-5", -9, "0 0 21 * * 0,1,2,3,4"),
        ("0 6,12 * * *", -9, "0 0 3,21 * * *"),
        ("30 * * * *", 5.5, "0 0 * * * *"),
        ("0 22 * * 6", 5, "0 0 3 * * 0"),
        ("0 6 15 * *", -5, "0 0 1 15 * *"),
    ],
)
def test_the_same_moments_on_other_clocks(text: str, hours: float, moved: str):
    shift = timedelta(hours=hours)
    cron = Cron.parse(text).shifted(shift)
    assert str(cron) == moved
    here, there, moment = Cron.parse(text), ZoneInfo("UTC"), NOW
    for _ in range(20):
        due = here.following(moment, UTC)
        assert cron.following(moment + shift, there) == due + shift
        moment = due


@pytest.mark.parametrize(
    ("text", "hours"), [("0 6 1 * *", -9), ("0 6,12 * * 1", -9), ("0,30 6 * * *", 0.5), ("0 0 6 1 1 *", -9)]
)
def test_what_one_expression_cannot_say_is_refused(text: str, hours: float):
    with pytest.raises(ValueError, match="there it"):
        Cron.parse(text).shifted(timedelta(hours=hours))


def test_the_difference_of_two_zones_or_the_day_on_which_it_changes():
    year = NOW + timedelta(days=366)
    assert constant_shift(ZoneInfo("Asia/Tokyo"), UTC, NOW, year) == timedelta(hours=-9)
    change = constant_shift(ZoneInfo("Europe/Berlin"), UTC, NOW, year)
    assert isinstance(change, datetime) and change.date().isoformat() == "2030-03-31"
    assert constant_shift(ZoneInfo("Europe/Berlin"), ZoneInfo("Europe/Paris"), NOW, year) == timedelta()


def test_a_zone_with_daylight_saving_needs_the_cluster_s_clocks_or_an_end_before_they_change():
    found, problems = plan(cron="0 6 * * *", time_zone="Europe/Berlin", now=NOW)
    assert found is None
    assert [p.where for p in problems] == ["--time-zone"]
    assert "2030-03-31" in problems[0].what and "CRON_SCHEDULE_TIMEZONE" in problems[0].remedy
    later, problems = plan(cron="0 6 * * *", time_zone="Europe/Berlin", start="2040-01-01", now=NOW)
    assert later is None and "2040-03-25" in problems[0].what
    same, problems = plan(cron="0 6 * * *", time_zone="Europe/Berlin", cluster_time_zone="Europe/Berlin", now=NOW)
    assert problems == [] and same.cluster_cron == "0 0 6 * * *"
    ends, problems = plan(cron="0 6 * * *", time_zone="Europe/Berlin", end="2030-03-01", now=NOW)
    assert problems == [] and ends.cluster_cron == "0 0 5 * * *"
    assert ends.end == datetime(2030, 2, 28, 23, tzinfo=timezone.utc)


def test_everything_wrong_is_reported_at_once():
    _, problems = plan(cron="0 25 * * *", every="6h", time_zone="Mars/Base", start="soon", max_concurrency=11, now=NOW)
    assert {p.where for p in problems} == {"--cron, --every", "--cron", "--time-zone", "--start", "--max-concurrency"}
    _, problems = plan(cron="0 6 * * *", every="6 parsecs", start="soon", end="2029-01-01", now=NOW)
    assert {p.where for p in problems} == {"--cron, --every", "--every", "--start", "--end"}
    assert plan(now=NOW)[1][0].where == "--cron, --every"


@pytest.mark.parametrize(
    ("text", "seconds", "words"),
    [("30m", 1800, "every 30 minutes"), ("1d", 86400, "every day"), ("2w", 1209600, "every 2 weeks")],
)
def test_intervals(text: str, seconds: int, words: str):
    found, problems = plan(every=text, now=NOW)
    assert problems == []
    assert (found.seconds, found.words) == (seconds, words)
