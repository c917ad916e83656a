"""`submit` against a server that holds every request to the API's schema."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest
from certificates import self_signed
from kfp_schema import Mismatch, check
from kfp_stand_in import StandIn, serving

from stillhouse.errors import InputError, StillhouseError
from stillhouse.pipelines.remote import runs, uploads
from stillhouse.pipelines.remote.connection import Api, connection

DATA = ("--set", "data=s3://bucket/reviews.csv")
SECRET = "s3cr3t-token-value"


def results(events: list[dict[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for event in events:
        if event["event"] == "result":
            merged.update(event["values"])
    return merged


def failure(events: list[dict[str, Any]]) -> dict[str, Any]:
    last = events[-1]
    assert (last["step"], last["event"]) == ("run", "failed"), last
    return last


def test_the_schema_is_held_to():
    good = {"display_name": "x", "runtime_config": {"parameters": {"a": 1}}, "state": "PENDING"}
    check(good, "V2beta1Run")
    for wrong in (
        {"nmae": "x"},
        {"display_name": 1},
        {"state": "DONE"},
        {"created_at": "yesterday"},
        {"runtime_config": []},
    ):
        with pytest.raises(Mismatch):
            check(wrong, "V2beta1Run")


def test_a_request_that_breaks_the_schema_is_refused(kubeflow: StandIn):
    api = Api(connection())
    body = {"name": "x", "colour": "blue"}
    with pytest.raises(StillhouseError, match=r"refused \(400\): proto: .*'colour' is not a field"):
        api.call("try", api.pipelines.pipeline_service_create_pipeline, body)


def test_the_first_submission_uploads_and_starts_a_run(kubeflow: StandIn, command: Any):
    code, events = command(
        "submit", *DATA, "--set", "model_name=verdicts", "--experiment", "trials", "--run-name", "one"
    )
    assert code == 0, events
    (pipeline,), (version,), (run,) = (list(x.values()) for x in (kubeflow.pipelines, kubeflow.versions, kubeflow.runs))
    said = results(events)
    assert (said["pipeline"], said["pipeline_version"], said["uploaded"]) == (pipeline.name, version.name, True)
    assert pipeline.name == "stillhouse-train-and-deploy-gpu"
    assert run.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    # What is not given keeps the default of the version.
    assert run.runtime_config.parameters == {"data": "s3://bucket/reviews.csv", "model_name": "verdicts"}
    assert run.display_name == "one"
    assert kubeflow.experiments[run.experiment_id].display_name == "trials"
    assert said["kubeflow_link"] == f"{kubeflow.url}/#/runs/details/{run.run_id}"
    assert not (Path.home() / ".config").exists()


def test_unchanged_content_is_uploaded_once(kubeflow: StandIn, command: Any):
    for _ in range(3):
        code, events = command("submit", *DATA)
        assert code == 0
    assert results(events)["uploaded"] is False
    assert kubeflow.operations().count("upload_pipeline_version") == 1
    assert (len(kubeflow.pipelines), len(kubeflow.experiments), len(kubeflow.runs)) == (1, 1, 3)


def test_changed_content_becomes_a_new_version_and_an_old_one_is_found_again(
    kubeflow: StandIn, command: Any, monkeypatch: pytest.MonkeyPatch
):
    command("submit", *DATA)
    compiled = uploads.compiled_yaml
    for number in range(4):  # more than a page of versions
        monkeypatch.setattr(
            uploads, "compiled_yaml", lambda *a, n=number: compiled(*a).replace("finetune-2", f"finetune-x{n}")
        )
        code, events = command("submit", *DATA)
        assert (code, results(events)["uploaded"]) == (0, True)
    assert len(kubeflow.pipelines) == 1
    names = [version.name for version in kubeflow.versions.values()]
    assert len(set(names)) == 5
    monkeypatch.setattr(uploads, "compiled_yaml", compiled)
    code, events = command("submit", *DATA)
    assert results(events)["pipeline_version"] == names[0]
    assert len(kubeflow.versions) == 5


def test_clusters_have_pipelines_of_their_own(kubeflow: StandIn, command: Any):
    command("submit", *DATA)
    command("submit", *DATA, "--cluster", "cpu")
    command("submit", *DATA, "--cluster", "cpu", "--pipeline", "mine")
    assert sorted(p.name for p in kubeflow.pipelines.values()) == [
        "mine",
        "stillhouse-train-and-deploy-cpu",
        "stillhouse-train-and-deploy-gpu",
    ]


def test_a_preset_goes_before_the_cluster_s_and_only_differences_are_sent(kubeflow: StandIn, command: Any):
    settings = ("--set", "seed=42", "--set", "gpus_per_node=0", "--set", "student_epochs=3")
    code, _ = command("submit", *DATA, "--preset", "large", *settings)
    assert code == 0
    (run,) = kubeflow.runs.values()
    assert run.runtime_config.parameters == {
        "data": "s3://bucket/reviews.csv",
        "gpus_per_node": 0,
        "teacher": "hub://google-bert/bert-large-uncased",
        "teacher_learning_rate": 2e-5,
        "student_learning_rate": 4e-5,
        "albert": "hub://albert/albert-xlarge-v2",
        "albert_learning_rate": 1e-5,
        "batch_size": 16,
        "gradient_accumulation_steps": 2,
    }


def test_token_cookie_and_namespace_reach_every_request(
    kubeflow: StandIn, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    kubeflow.token, kubeflow.namespace = SECRET, "team-a"
    monkeypatch.setenv("KFP_TOKEN", f"{SECRET}\n")
    code, events = command("submit", *DATA, "--namespace", "team-a")
    assert code == 0, events
    assert {request.headers["authorization"] for request in kubeflow.requests} == {f"Bearer {SECRET}"}
    assert next(iter(kubeflow.pipelines.values())).namespace == "team-a"
    assert SECRET not in json.dumps(events)

    kubeflow.token, kubeflow.cookie = "", "authservice_session=abc"
    monkeypatch.delenv("KFP_TOKEN")
    (tmp_path / "cookie").write_text("authservice_session=abc\n")
    monkeypatch.setenv("KFP_NAMESPACE", "team-a")
    code, events = command("submit", *DATA, "--cookie-file", str(tmp_path / "cookie"))
    assert code == 0, events
    assert kubeflow.requests[-1].headers["cookie"] == "authservice_session=abc"


def test_a_mounted_token_is_read_anew_for_each_request(
    kubeflow: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("first")
    api = Api(connection())
    kubeflow.token = "first"
    runs.experiment_id(api, "a")
    (tmp_path / "token").write_text("second")
    kubeflow.token = "second"
    runs.experiment_id(api, "b")


def test_a_pod_finds_the_cluster_s_own():
    found = connection(environment={"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert found.endpoint == "http://ml-pipeline.kubeflow.svc.cluster.local:8888"


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ((401, '{"message": "no identity"}'), 1, "wants you to log in (401). Set KFP_TOKEN"),
        ((302, ""), 1, "wants you to log in (302)"),
        ((200, "<html>Dex</html>"), 1, "answered with a web page"),
        ((403, '{"message": "not yours"}'), 1, "does not allow it (403): not yours"),
        ((404, "<html>nothing</html>"), 1, "there is no Kubeflow Pipelines API"),
        ((404, '{"code": 5, "message": "Not Found"}'), 1, "there is no Kubeflow Pipelines API at http://localhost"),
        ((500, '{"error_message": "it broke"}'), 1, "refused (500): it broke"),
        ((503, ""), 1, "cannot answer now (503)"),
    ],
)
def test_a_refusal_is_one_clear_message(kubeflow: StandIn, command: Any, fault: tuple[int, str], code: int, words: str):
    kubeflow.faults = [fault]
    got, events = command("submit", *DATA)
    assert got == code
    assert words in failure(events)["message"]
    assert len(failure(events)["message"].splitlines()) == 1
    assert not kubeflow.runs


def test_who_is_not_there(command: Any, kubeflow: StandIn, monkeypatch: pytest.MonkeyPatch):
    code, events = command("submit", *DATA, "--endpoint", "http://localhost:9/pipeline")
    assert code == 1
    assert "http://localhost:9/pipeline cannot be reached (Connection refused). Is" in failure(events)["message"]
    code, events = command("submit", *DATA, "--endpoint", kubeflow.url.replace("http:", "https:"))
    assert code == 1
    assert "cannot be reached safely. It does not speak TLS" in failure(events)["message"]
    kubeflow.silence = 0.4
    monkeypatch.setattr("stillhouse.pipelines.remote.connection._READ_SECONDS", 0.05)
    code, events = command("submit", *DATA)
    assert code == 1
    assert "did not answer in time" in failure(events)["message"]


def test_secrets_are_in_no_message(kubeflow: StandIn, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KFP_TOKEN", SECRET)
    kubeflow.faults = [(500, json.dumps({"message": f"bad token {SECRET}"}))]
    api = Api(connection())
    assert SECRET not in repr(api.connection)
    with pytest.raises(StillhouseError) as caught:
        runs.experiment_id(api, "a")
    assert SECRET not in str(caught.value) and "***" in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("options", "environment", "where"),
    [
        ({"endpoint": "kubeflow.example"}, {}, "--endpoint"),
        ({"endpoint": f"https://me:{SECRET}@host"}, {}, "--endpoint"),
        ({"endpoint": f"https://host/pipeline?token={SECRET}"}, {}, "--endpoint"),
        ({"endpoint": f"host?token={SECRET}"}, {}, "--endpoint"),
        ({}, {}, "--endpoint"),
        ({"endpoint": "https://host", "token_file": "/not/there"}, {}, "--token-file"),
        ({"endpoint": "https://host", "ca_certificate": "/not/there"}, {}, "--ca-certificate"),
        ({"endpoint": "https://host", "ca_certificate": __file__}, {}, "--ca-certificate"),
        ({"endpoint": "https://host"}, {"KFP_COOKIE": SECRET}, "environment"),
        ({"endpoint": "https://host"}, {"KFP_TOKEN": f"{SECRET}\nX-Other: 1"}, "environment"),
    ],
)
def test_a_wrong_connection_is_refused_without_its_secrets(options: dict, environment: dict, where: str):
    with pytest.raises(InputError) as caught:
        connection(**options, environment=environment)
    assert [problem.where for problem in caught.value.problems] == [where]
    assert SECRET not in str(caught.value)


def test_everything_wrong_with_the_input_is_told_before_anything_is_sent(
    kubeflow: StandIn, command: Any, tmp_path: Path
):
    wrong = ("data=reviews.csv", "validation_data=file:///v.csv", "deploy_target=local", "checkpoint_dir=ckpt",
             "albert=./albert", "tracking_uri=sqlite:///mlflow.db", "polcy=memory", "teacher_epochs=-1",
             "min_retention=x")  # fmt: skip
    code, events = command(
        "submit", "--token-file", "/not/there", *(part for text in wrong for part in ("--set", text))
    )
    assert code == 2
    where = [problem["where"] for problem in failure(events)["problems"]]
    assert sorted(where) == sorted(["--token-file", *(text.partition("=")[0] for text in wrong)])
    assert kubeflow.requests == []


@pytest.mark.parametrize("uri", ["https://me:hunter2@mlflow", "http://localhost:5000"])
def test_a_registry_that_only_this_machine_knows_or_with_a_password_is_refused(
    kubeflow: StandIn, command: Any, uri: str
):
    code, events = command("submit", *DATA, "--set", f"tracking_uri={uri}")
    assert code == 2
    assert [p["where"] for p in failure(events)["problems"]] == ["tracking_uri"]
    assert "hunter2" not in json.dumps(events)


@pytest.mark.parametrize("option", [("--cluster", "nowhere"), ("--preset", "huge"), ()])
def test_an_unknown_cluster_or_preset_or_no_data_is_bad_input(kubeflow: StandIn, command: Any, option: tuple[str, ...]):
    code, events = command("submit", *option, *(DATA if option else ()))
    assert code == 2
    assert [p["where"] for p in failure(events)["problems"]] == [option[0] if option else "data"]


def test_a_faulty_cluster_hides_nothing_else(kubeflow: StandIn, command: Any, tmp_path: Path):
    others = ("--preset", "huge", "--pipeline", "A B", "--set", "sed=1", "--set", "seed=x", "--set", "policy=fast")
    rest = {"--preset", "--pipeline", "sed", "seed", "policy"}
    path = tmp_path / "ours.yaml"
    path.write_text("volumes: []\npreset: vast\nparameters: {num_nodes: many, polcy: memory}\n")
    for cluster, where in (
        ("nowhere", {"--cluster"}),
        (str(path), {f"{path}: {part}" for part in ("volumes", "preset", "parameters.num_nodes", "parameters.polcy")}),
    ):
        code, events = command("submit", *DATA, "--cluster", cluster, *others)
        assert code == 2
        assert {problem["where"] for problem in failure(events)["problems"]} == where | rest
    assert kubeflow.requests == []


def test_a_file_of_a_shipped_cluster_s_name_does_not_become_its_pipeline(
    kubeflow: StandIn, command: Any, tmp_path: Path
):
    for name in ("gpu.yaml", "GPU.yml", "gpu-a100.yaml"):
        (tmp_path / name).write_text("preset: small\n")
    for name in ("gpu.yaml", "GPU.yml"):
        code, events = command("submit", *DATA, "--cluster", str(tmp_path / name))
        assert code == 2
        assert [problem["where"] for problem in failure(events)["problems"]] == ["--cluster"]
        assert f"{name} would be uploaded as" in failure(events)["message"]
    assert command("submit", *DATA, "--cluster", str(tmp_path / "gpu.yaml"), "--pipeline", "mine")[0] == 0
    assert command("submit", *DATA, "--cluster", str(tmp_path / "gpu-a100.yaml"))[0] == 0
    names = {pipeline.name for pipeline in kubeflow.pipelines.values()}
    assert names == {"mine", "stillhouse-train-and-deploy-gpu-a100"}


def test_passwords_are_refused_and_signed_links_are_not_repeated(kubeflow: StandIn, command: Any):
    for given in ("data=https://ada:hunter2@host/x.csv", "test_data=s3://AKIA:hunter2@bucket/x", "data=file://h2@/x"):
        code, events = command("submit", *DATA, "--set", given)
        assert code == 2
        assert [problem["where"] for problem in failure(events)["problems"]] == [given.partition("=")[0]]
        assert "hunter2" not in json.dumps(events) and "h2" not in json.dumps(events)
    signed = "https://host/reviews.csv?X-Amz-Signature=hunter2"
    code, events = command("submit", "--set", f"data={signed}")
    assert code == 0
    (run,) = kubeflow.runs.values()
    assert run.runtime_config.parameters == {"data": signed}
    assert results(events)["parameters"] == {"data": "https://host/reviews.csv?***"}
    code, answer = command("schedule", "create", "signed", "--every", "1d", "--set", f"data={signed}")
    assert code == 0 and "hunter2" not in json.dumps(answer)


def test_an_archived_experiment_is_refused_with_the_way_out(kubeflow: StandIn, command: Any):
    command("submit", *DATA, "--experiment", "trials")
    (experiment,) = kubeflow.experiments.values()
    experiment.storage_state = "ARCHIVED"
    code, events = command("submit", *DATA, "--experiment", "trials")
    assert code == 2
    (problem,) = failure(events)["problems"]
    assert problem["where"] == "--experiment" and "Restore it" in problem["remedy"]


def test_a_preset_that_deploys_on_this_machine_deploys_nothing_on_a_cluster(kubeflow: StandIn, command: Any):
    code, _ = command("submit", "--preset", "demo")
    assert code == 0
    (run,) = kubeflow.runs.values()
    assert run.runtime_config.parameters["data"].startswith("demo://")
    assert "deploy_target" not in run.runtime_config.parameters


def test_the_shell_s_registry_goes_before_the_run_s(
    kubeflow: StandIn, command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    inside = ("--set", "tracking_uri=http://mlflow.invalid:5000")  # as pods see it
    code, events = command("submit", *DATA, *inside, "--wait")
    assert code == 0
    assert results(events)["evaluation_absent"] == "The registry has no record of this run."


def test_watching_shows_each_step_once_and_ends_with_the_run(kubeflow: StandIn, command: Any):
    kubeflow.cached = {"prepare-data"}
    code, events = command("submit", *DATA, "--wait")
    assert code == 0
    plan = next(event for event in events if event["event"] == "plan")
    planned = [step["id"] for step in plan["steps"]]
    assert planned[0] == "inspect-source" and planned[-1] == "notify"
    ends = {event["step"]: event for event in events if event["event"] in ("finished", "cached", "failed")}
    assert set(ends) == {*planned, "run"}
    assert {step for step, event in ends.items() if event["event"] == "cached"} == {"prepare-data"}
    assert ends["register"]["seconds"] == 30.0
    for step in set(planned) - {"prepare-data"}:
        assert [e["event"] for e in events if e["step"] == step and e["event"] != "result"] == ["started", "finished"]
    assert "MLFLOW_TRACKING_URI is not set" in results(events)["evaluation_absent"]


def test_steps_that_a_condition_leaves_out_are_not_spoken_of(kubeflow: StandIn, command: Any):
    kubeflow.left_out = {"prepare-data", "finetune", "finetune-2", "distill", "package", "package-2", "package-3",
                         "fetch-champion", *(f"{step}{twin}" for step in ("evaluate", "register", "deploy")
                                             for twin in ("", "-2"))}  # fmt: skip
    code, events = command("submit", *DATA, "--wait")
    assert code == 0
    assert {e["step"] for e in events if e["event"] == "finished"} == {"inspect-source", "notify", "run"}


def test_an_extra_candidate_is_watched_too(kubeflow: StandIn, command: Any):
    code, events = command("submit", *DATA, "--set", 'extra_candidates=["hub://owner/roberta"]', "--wait")
    assert code == 0
    (plan,) = [event for event in events if event["event"] == "plan"]
    titles = {step["id"]: step["title"] for step in plan["steps"]}
    assert titles["finetune-extra"] == "Fine-tune extra candidate" and "package-extra" in titles
    assert {e["step"] for e in events if e["event"] == "finished"} == {*titles, "run"}


def test_a_failed_step_is_named_with_what_it_said(kubeflow: StandIn, command: Any):
    kubeflow.failing = {"evaluate": "no candidate passed"}
    code, events = command("submit", *DATA, "--wait")
    assert code == 1
    failed = next(event for event in events if event["event"] == "failed" and event["step"] == "evaluate")
    assert failed["message"] == "no candidate passed"
    assert "Evaluate and choose: no candidate passed" in failure(events)["message"]
    assert "/#/runs/details/" in failure(events)["message"]
    assert not any(event["step"] in ("register", "deploy") for event in events if event["event"] != "plan")
    assert any(event["step"] == "notify" and event["event"] == "finished" for event in events)


def test_watching_outlives_a_server_that_is_away_for_a_while(kubeflow: StandIn, command: Any):
    command("submit", *DATA)
    (run_id,) = kubeflow.runs
    kubeflow.faults = []
    seen = kubeflow.requests.__len__()
    real = kubeflow.run_service_get_run

    def flaky(run_id: str, **query: str) -> Any:
        if len(kubeflow.requests) - seen in (4, 5):
            from kfp_stand_in import Refused

            raise Refused(503, "starting")
        return real(run_id, **query)

    kubeflow.run_service_get_run = flaky
    code, events = command("watch", run_id)
    assert code == 0, events


def test_watching_an_unknown_run_is_bad_input(kubeflow: StandIn, command: Any):
    code, events = command("watch", "6e1b2f7c-0000-0000-0000-000000000000")
    assert code == 2
    assert failure(events)["problems"][0]["where"] == "RUN"


def test_a_certificate_is_checked_against_the_authority_that_is_given(tmp_path: Path):
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(context) as world:
        with pytest.raises(StillhouseError, match="certificate is not trusted"):
            runs.experiment_id(Api(connection(endpoint=world.url, environment={})), "a")
        trusting = connection(endpoint=world.url, ca_certificate=str(certificate), environment={})
        assert runs.experiment_id(Api(trusting), "a") in world.experiments


def test_the_generated_client_is_the_one_whose_schema_is_checked():
    assert kfp_server_api.__version__.split(".")[0] == "2"
