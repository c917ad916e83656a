from __future__ import annotations

from stillhouse.serving.journal import Release, read_releases, record_release, standing
from stillhouse.serving.server import ServerConfig


def releases(*entries):
    """From `2 rollback`, `3` and so on; what is not said is `deploy`."""
    found = []
    for entry in entries:
        version, _, how = entry.partition(" ")
        found.append(
            Release(
                at="",
                model="m",
                version=version,
                package="",
                how=how or "deploy",
                registered=not how.endswith("folder"),
            )
        )
    return found


def stack(*entries):
    return [entry.version for entry in standing(releases(*entries))]


def test_what_can_be_gone_back_to():
    assert stack() == []
    assert stack("1", "2", "3") == ["1", "2", "3"]
    assert stack("1", "2", "3", "2 rollback") == ["1", "2"]
    assert stack("1", "2", "3", "2 rollback", "1 rollback") == ["1"]
    assert stack("1", "2", "3", "2 rollback", "4") == ["1", "2", "4"]
    assert stack("1", "2", "1 serve") == ["2", "1"]  # on top again, by hand
    assert stack("1", "2", "2") == ["1", "2"]
    assert stack("1", "2", "5 rollback") == ["1", "2", "5"]  # named with --to, and never served here before
    assert stack("1", "1 serve folder") == ["1"]


def test_recorded_and_read(tmp_path):
    for model, version in (("a", "1"), ("b", "4"), ("a", "2")):
        config = ServerConfig(folder=tmp_path, package=tmp_path / version, model=model, version=version)
        record_release(config, "serve", registered=model == "a")
    with (tmp_path / "releases.jsonl").open("a") as file:
        file.write('{"version": "cut o')
    assert [(r.model, r.version, r.how, r.registered) for r in read_releases(tmp_path)] == [
        ("a", "1", "serve", True),
        ("b", "4", "serve", False),
        ("a", "2", "serve", True),
    ]
    assert [r.version for r in read_releases(tmp_path, "a")] == ["1", "2"]
    assert read_releases(tmp_path)[0].package == str(tmp_path / "1")
    assert read_releases(tmp_path)[0].at.endswith("+00:00")
    assert read_releases(tmp_path / "elsewhere") == []
