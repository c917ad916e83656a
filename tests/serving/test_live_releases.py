"""One release after another in a running server, under load and with retries off."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pytest
from constant_load import constant_load
from tiny_package import TEXTS, build_package
from tritonclient import grpc

from stillhouse.artifacts import PackageManifest
from stillhouse.errors import InputError, ServingError
from stillhouse.serving.live import model_processes
from stillhouse.serving.repository import set_model_version
from stillhouse.serving.runtime import PackageRuntime
from stillhouse.serving.server import is_answering, read_status, start_server, switch_server


def fetched(folder, version, *, served_name="reviews", change=None, **options):
    """A package fetched as a version; `change` alters it before its digests are taken again."""
    # Refused for no load but where a test wants it: the machine may be busy with more than these tests.
    package = build_package(folder, served_name=served_name, **{"max_wait_ms": 0, **options})
    set_model_version(package / "triton", served_name, version)
    if change:
        change(package)
        PackageManifest.load(package).save(package)
    return package


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    root = tmp_path_factory.mktemp("releases")
    # The third one's front model runs its encoder itself, and the fourth one's.
    three = {
        version: fetched(root / version, version, seed=int(version), encoder_in_front=version == "3")
        for version in ("1", "2", "3")
    }
    # Its encoder cannot be a version of the others' model: other outputs, other warm-up.
    other = fetched(root / "4", "4", seed=4, label_names=("no", "yes"), max_length=16, encoder_in_front=True)
    return {**three, "4": other}


def config_of(own_server, package, version, **changes):
    return replace(own_server, package=package, version=version, **changes)


def truth(packages):
    """What each package answers to each text."""
    found = {}
    for version, package in packages.items():
        runtime = PackageRuntime(package)
        found[version] = {text: runtime.predict([text]).probabilities[0] for text in TEXTS}
    return found


def models_of(folder):
    return sorted(f"{path.parent.name}/{path.name}" for path in (folder / "served").glob("*/[0-9]*"))


def test_no_request_is_lost_and_each_is_answered_by_a_current_release(own_server, releases):
    known = truth(releases)
    started = start_server(config_of(own_server, releases["1"], "1"))
    current = {}  # when each release began to be asked for, and when the next one was in place
    begin, now = time.monotonic(), "1"
    with constant_load(started.grpc_url, "reviews", TEXTS) as load:
        time.sleep(0.5)
        for version in ("2", "3", "2", "4", "1"):  # three releases and two rollbacks
            asked = time.monotonic()
            status = switch_server(config_of(own_server, releases[version], version))
            assert (status.version, status.package) == (version, str(releases[version]))
            current.setdefault(now, []).append((begin, time.monotonic()))
            begin, now = asked, version
            assert models_of(own_server.folder) == [f"reviews-encoder/{version}", f"reviews/{version}"]
            assert len(model_processes(status.server_pid, own_server.folder / "served")) == 2
            time.sleep(0.3)
    current.setdefault(now, []).append((begin, time.monotonic()))

    assert load.failed == []
    assert {answer.version for answer in load.answered} == {"1", "2", "3", "4"}
    stale = [
        (answer.version, answer.sent, answer.received)
        for answer in load.answered
        if not any(b <= answer.received and answer.sent <= e for b, e in current[answer.version])
    ]
    assert stale == []
    # A front model that asked another release's encoder would be off by far more than 0.001.
    for answer in load.answered:
        np.testing.assert_allclose(answer.probabilities, known[answer.version][answer.text], atol=1e-3)
    assert (status.pid, status.server_pid, status.restarts) == (started.pid, started.server_pid, 0)
    assert is_answering(status)


def test_same_version_of_another_package(own_server, releases, tmp_path):
    """As with a package folder, which is always served as version 1."""
    other = fetched(tmp_path / "other", "1", seed=9)
    known = truth({"old": releases["1"], "new": other})
    started = start_server(config_of(own_server, releases["1"], "1"))
    with constant_load(started.grpc_url, "reviews", TEXTS) as load:
        time.sleep(0.3)
        switch_server(config_of(own_server, other, "1"))
        done = time.monotonic()
        time.sleep(0.3)
    assert load.failed == []
    for answer in load.answered:
        either = [np.abs(np.subtract(answer.probabilities, known[which][answer.text])).max() for which in known]
        assert (either[1] if answer.sent > done else min(either)) < 1e-3


def test_release_under_another_name(own_server, releases, tmp_path):
    started = start_server(config_of(own_server, releases["1"], "1"))
    other = fetched(tmp_path / "other", "5", served_name="ratings", seed=5)
    status = switch_server(config_of(own_server, other, "5", model="ratings"))
    assert (status.model, status.server_pid) == ("ratings", started.server_pid)
    assert is_answering(status)
    assert models_of(own_server.folder) == ["ratings-encoder/5", "ratings/5"]
    with grpc.InferenceServerClient(status.grpc_url) as client:
        assert not client.is_model_ready("reviews")
        assert not client.is_model_ready("reviews-encoder")


def broken_encoder(package):
    (package / "triton/reviews-encoder/8/model.onnx").write_bytes(b"this is no model")


def broken_front(package):
    (package / "triton/reviews/8/model.py").write_text("raise ValueError('no front model')")


def mute_front(package):
    """Loads, and answers nothing."""
    path = package / "triton/reviews/8/model.py"
    source = path.read_text()
    call = "            probabilities, labels = self._classifier.classify("
    mute = source.replace(call, f"            raise RuntimeError('not in the mood')\n{call}")
    assert mute != source
    path.write_text(mute)


@pytest.mark.parametrize("labels", [("negative", "neutral", "positive"), ("no", "yes")], ids=["beside", "bridged"])
@pytest.mark.parametrize(
    ("change", "says", "lossless"),
    [
        (broken_encoder, "could not load reviews-encoder", True),
        (broken_front, "could not load reviews", True),
        (mute_front, "not in the mood", False),  # it served for a moment; the trial on spare ports is there for that
    ],
)
def test_release_that_fails_leaves_the_old_one(own_server, releases, tmp_path, change, says, lossless, labels):
    bad = fetched(tmp_path / "bad", "8", seed=8, change=change, label_names=labels)
    started = start_server(config_of(own_server, releases["1"], "1"))
    with constant_load(started.grpc_url, "reviews", TEXTS) as load:
        with pytest.raises(ServingError, match=f"reviews version 8 did not come up: .*{says}") as caught:
            switch_server(config_of(own_server, bad, "8"))
        back = time.monotonic()
        status = read_status(own_server.folder)
        assert (status.status, status.version, status.restarts) == ("ready", "1", 0)
        assert status.server_pid == started.server_pid
        assert models_of(own_server.folder) == ["reviews-encoder/1", "reviews/1"]
        time.sleep(0.3)
    if lossless:
        assert caught.value.log_tail  # Triton's own lines
        assert load.failed == []
        assert {answer.version for answer in load.answered} == {"1"}
    assert [answer.error for answer in load.failed if answer.sent > back] == []
    assert switch_server(config_of(own_server, releases["2"], "2")).version == "2"


def test_what_cannot_be_changed_to(own_server, releases, tmp_path):
    with pytest.raises(ServingError, match="no server runs"):
        switch_server(config_of(own_server, releases["1"], "1"))
    started = start_server(config_of(own_server, releases["1"], "1"))
    with pytest.raises(ServingError, match="on these ports"):
        switch_server(config_of(own_server, releases["2"], "2", ports=replace(own_server.ports, http=0)))
    altered = shutil.copytree(releases["2"], tmp_path / "altered")
    (altered / "triton/reviews/2/model.py").write_text("raise SystemExit")
    with pytest.raises(InputError, match=r"model\.py was altered"):
        switch_server(config_of(own_server, altered, "2"))
    assert read_status(own_server.folder).version == "1"
    assert is_answering(started)


def test_repository_calls_are_closed(own_server, releases):
    started = start_server(config_of(own_server, releases["1"], "1"))
    with grpc.InferenceServerClient(started.grpc_url) as client:
        for call in (client.load_model, client.unload_model):
            with pytest.raises(Exception, match="restricted"):
                call("reviews")
    assert is_answering(started)


def supervisor_log(config):
    return (config.folder / "logs/supervisor.log").read_text()


def troubles(config):
    return [line for line in supervisor_log(config).splitlines() if " trouble: " in line]


def before_the_encoder(package, statement):
    """Have the front model do something before each call of the encoder."""
    path = package / "triton/reviews/1/model.py"
    source, call = path.read_text(), "        response = pb_utils.Infer"
    changed = source.replace(call, f"        {statement}\n{call}", 1)
    assert changed != source
    path.write_text(changed)


def slow_front(package, seconds=0.2):
    """So much longer in each call of the encoder."""
    before_the_encoder(package, f"time.sleep({seconds})")


def test_stopped_under_load_it_answers_what_it_accepted(own_server, tmp_path):
    slow = fetched(tmp_path / "slow", "1", change=slow_front, batch_rows=2)
    started = start_server(config_of(own_server, slow, "1"))
    with constant_load(started.grpc_url, "reviews", TEXTS, threads=12) as load:
        time.sleep(2)
        asked = time.monotonic()
        os.kill(started.pid, signal.SIGTERM)
        psutil.Process(started.pid).wait(timeout=60)
    waiting = [answer for answer in load.answers if answer.sent < asked < answer.received]
    assert len(waiting) == 12  # two at work, and ten in the queue
    assert [answer.error for answer in waiting if answer.error] == []
    assert all(answer.sent > asked for answer in load.failed)
    # What came later was refused; the last ones when the server closed its connections, long after it took anything.
    assert {answer.error[:23] for answer in load.failed if answer.sent < asked + 1} == {"[StatusCode.NOT_FOUND] "}
    log = (own_server.folder / "logs/server.log").read_text()
    assert "Signal (11)" not in log
    assert "stopping: answering what was accepted" in supervisor_log(own_server)


@pytest.mark.parametrize("victim", ["reviews", "reviews-encoder", "server"])
def test_killed_under_load_it_answers_again_within_10_seconds(own_server, releases, victim):
    started = start_server(config_of(own_server, releases["1"], "1"))
    before = model_processes(started.server_pid, own_server.folder / "served")
    with constant_load(started.grpc_url, "reviews", TEXTS) as load:
        time.sleep(1)
        killed = time.monotonic()
        if victim == "server":
            os.kill(started.server_pid, signal.SIGKILL)
        else:
            (stub,) = model_processes(started.server_pid, own_server.folder / "served" / victim)
            stub.kill()
        time.sleep(10)
        seen = len(load.answers)
    answered = [answer for answer in load.answers[:seen] if answer.sent > killed + 0.5 and not answer.error]
    assert answered
    print(f"killed {victim}: answering again after {answered[0].received - killed:.1f} s")
    assert not psutil.pid_exists(started.server_pid)
    assert [process for process in before if process.is_running()] == []
    (trouble,) = troubles(own_server)
    assert trouble[:4].isdigit()  # it begins with the time
    assert ("Triton ended with code -9" if victim == "server" else "Python process") in trouble
    assert " ready: " in supervisor_log(own_server).splitlines()[-1]
    assert read_status(own_server.folder).restarts == 1


@pytest.mark.parametrize(
    ("victim", "told"), [("server", "Triton ended with code -9."), ("reviews-encoder", "Python process")]
)
def test_killed_during_a_probe_it_tells_who_ended(own_server, tmp_path, victim, told):
    slow = fetched(tmp_path / "slow", "1", change=partial(slow_front, seconds=3))
    started = start_server(config_of(own_server, slow, "1", probe_interval=0.0))
    time.sleep(1.5)  # by then the next one has begun
    (encoder,) = model_processes(started.server_pid, own_server.folder / "served/reviews-encoder")
    os.kill(started.server_pid if victim == "server" else encoder.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not troubles(own_server):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert told in troubles(own_server)[0]


def test_overload_is_no_reason_to_restart(own_server, tmp_path):
    slow = fetched(tmp_path / "slow", "1", change=slow_front, batch_rows=1, max_queue_size=1)
    started = start_server(config_of(own_server, slow, "1", probe_interval=0.2))
    with constant_load(started.grpc_url, "reviews", TEXTS, threads=12) as load:
        time.sleep(8)
    assert len(load.failed) > len(load.answered) > 10
    status = read_status(own_server.folder)
    assert (status.status, status.restarts, status.server_pid) == ("ready", 0, started.server_pid)


def test_an_encoder_that_hangs_under_load_is_a_reason(own_server, tmp_path):
    """Though others are refused at once, which Triton counts as success."""
    stuck = tmp_path / "stuck"
    hang = partial(before_the_encoder, statement=f"while os.path.exists({str(stuck)!r}): time.sleep(0.1)")
    package = fetched(tmp_path / "package", "1", change=hang, batch_rows=1, max_queue_size=1)
    started = start_server(config_of(own_server, package, "1", probe_interval=0.2, probe_timeout=3.0))
    with constant_load(started.grpc_url, "reviews", TEXTS, threads=12) as load:
        time.sleep(1)
        stuck.touch()
        deadline = time.monotonic() + 60
        while not troubles(own_server):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        stuck.unlink()
        restarted = time.monotonic()
        while not any(answer.sent > restarted for answer in load.answered):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert any("the model is overloaded" in answer.error for answer in load.failed)
    assert read_status(own_server.folder).restarts >= 1


def test_altered_package_is_refused_at_the_start_and_at_a_restart(own_server, releases, tmp_path):
    package = shutil.copytree(releases["1"], tmp_path / "package")
    config = config_of(own_server, package, "1")
    started = start_server(config)
    with (package / "triton/reviews/1/tokenizer.json").open("a") as file:
        file.write(" ")
    os.kill(started.server_pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (status := read_status(own_server.folder)).status != "failed":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "tokenizer.json was altered" in status.message
    assert "refused: " in supervisor_log(own_server)
    with pytest.raises(InputError, match=r"tokenizer\.json was altered") as caught:
        start_server(config)
    assert caught.value.exit_code == 2


def test_logs_are_rotated_while_they_are_written(own_server, releases):
    """The server writes some 10,000 bytes at each start."""
    config = config_of(own_server, releases["1"], "1", log_bytes=4000, log_files=2)
    started = start_server(config)
    for version in ("2", "3", "1"):
        switch_server(replace(config, package=releases[version], version=version))
    logs = own_server.folder / "logs"
    assert sorted(path.name for path in logs.glob("server.log*")) == ["server.log", "server.log.1", "server.log.2"]
    assert all(path.stat().st_size <= 70_000 for path in logs.glob("server.log*"))  # one block of a pipe more
    assert "successfully loaded" in "".join(path.read_text() for path in logs.glob("server.log*"))
    assert is_answering(read_status(own_server.folder))
    assert read_status(own_server.folder).server_pid == started.server_pid
