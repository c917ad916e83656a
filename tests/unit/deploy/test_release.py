from __future__ import annotations

import json

import pytest
from folder_registry import FolderRegistry
from tiny_package import TEXTS, build_package

from stillhouse.artifacts import PackageManifest
from stillhouse.deploy.shelf import fetch_release
from stillhouse.deploy.smoke import KnownAnswer, known_answers, read_answers
from stillhouse.errors import InputError, ManifestError, ServingError
from stillhouse.serving.verify import verify_release


@pytest.fixture
def registry(tmp_path):
    return FolderRegistry({version: build_package(tmp_path / version, seed=int(version)) for version in ("1", "7")})


def test_fetched_as_its_version(registry, tmp_path):
    release = fetch_release(registry, "reviews", "7", tmp_path / "shelf")
    assert release.name.startswith("7-")
    assert (release / "triton/reviews/7/model.py").is_file()
    assert (release / "triton/reviews-encoder/7/model.onnx").is_file()
    assert not (release / "triton/reviews/1").exists()
    verify_release(release, PackageManifest.load(release), "7")
    assert [p.name for p in (tmp_path / "shelf/reviews").iterdir()] == [release.name]  # nothing half-fetched is left


def test_fetched_again_is_the_same_folder(registry, tmp_path):
    release = fetch_release(registry, "reviews", "7", tmp_path / "shelf")
    inode = release.stat().st_ino
    assert fetch_release(registry, "reviews", "7", tmp_path / "shelf") == release
    assert release.stat().st_ino == inode


def test_altered_release_is_fetched_anew(registry, tmp_path):
    release = fetch_release(registry, "reviews", "7", tmp_path / "shelf")
    (release / "triton/reviews/7/model.py").write_text("raise SystemExit")
    assert fetch_release(registry, "reviews", "7", tmp_path / "shelf") == release
    verify_release(release, PackageManifest.load(release), "7")


def test_same_number_of_another_registry_is_another_release(registry, tmp_path):
    first = fetch_release(registry, "reviews", "1", tmp_path / "shelf")
    registry.packages["1"] = registry.packages["7"]
    assert fetch_release(registry, "reviews", "1", tmp_path / "shelf") != first


def test_altered_in_the_registry(registry, tmp_path):
    registry.fetch_package = lambda name, version, destination: registry.packages[version]  # one that checks nothing
    (registry.packages["7"] / "triton/reviews/1/settings.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"settings\.json was altered"):
        fetch_release(registry, "reviews", "7", tmp_path / "shelf")
    assert not list((tmp_path / "shelf/reviews").iterdir())


def test_other_served_name(tmp_path):
    registry = FolderRegistry({"1": build_package(tmp_path / "p", served_name="other")})
    with pytest.raises(ManifestError, match="other"):
        fetch_release(registry, "reviews", "1", tmp_path / "shelf")


def test_known_answers(registry):
    package = registry.packages["1"]
    answers = known_answers(package, TEXTS)
    assert [a.text for a in answers] == TEXTS
    assert all(abs(sum(a.probabilities) - 1) < 1e-5 for a in answers)
    rows = [{"text": a.text, "label": a.label, "probabilities": [0, 0, 0]} for a in answers]
    assert known_answers(package, rows) == answers
    with pytest.raises(ServingError, match="as it did when it was evaluated"):
        known_answers(package, [{**rows[0], "label": "someone else's"}])
    with pytest.raises(InputError, match="smoke_rows"):
        known_answers(package, [])


def test_rows_that_another_version_would_take_are_not_asked(registry):
    package = registry.packages["1"]
    longest = PackageManifest.load(package).max_text_bytes
    assert [a.text for a in known_answers(package, ["é" * longest, "a" * longest])] == ["a" * longest]
    assert "" in [a.text for a in known_answers(package, [{"text": "a" * (longest + 1), "label": "good"}])]


def test_known_answers_in_a_file(tmp_path):
    path = tmp_path / "answers.json"
    rows = [{"text": "a", "label": "good", "probabilities": [0.9, 0.1]}, {"text": "b", "label": "bad"}, {"text": ""}]
    path.write_text(json.dumps(rows))
    assert read_answers(path) == [KnownAnswer("a", "good", (0.9, 0.1)), KnownAnswer("b", "bad"), KnownAnswer("")]
    path.write_text(json.dumps([rows[0], {"label": "good"}, "c", {"text": 3}, {"text": "d", "probabilities": ["x"]}]))
    with pytest.raises(InputError) as caught:
        read_answers(path)
    assert [problem.where for problem in caught.value.problems] == [f"{path}, row {row}" for row in (2, 3, 4, 5)]
    for text in ("[]", "{}", "nonsense"):
        path.write_text(text)
        with pytest.raises(InputError, match=str(path)):
            read_answers(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_answers(tmp_path / "nowhere")
