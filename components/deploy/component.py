"""Component `deploy`."""

from kfp import dsl

from stillhouse.components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def deploy(
    model_name: str,
    version: str,
    tracking_uri: str,
    deploy_target: str,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    evaluation: dsl.Input[dsl.Artifact],
):
    """Roll the registered version out to Triton, smoke-test it over gRPC, and move the alias `champion`; never cached.

    Args:
        model_name: Name of the registered and served model.
        version: The registered version.
        tracking_uri: MLflow's tracking URI; empty takes `MLFLOW_TRACKING_URI`.
        deploy_target: `none`, `local` or `kubernetes`.
        grpc_port: Port of the local server's gRPC endpoint, on loopback.
        http_port: Port of the local server's HTTP endpoint, on loopback.
        metrics_port: Port of the local server's metrics, on loopback.
        evaluation: Says whether the choice may be served, and holds test rows whose answers are known.
    """
    import json
    from pathlib import Path

    from stillhouse.artifacts import EvaluationManifest
    from stillhouse.deploy import DeployConfig, deploy_release
    from stillhouse.progress import step
    from stillhouse.registry import MlflowRegistry

    with step("deploy") as watch:
        config = DeployConfig(
            model_name=model_name, version=version, tracking_uri=tracking_uri, deploy_target=deploy_target,
            grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port,
        )  # fmt: skip
        choice = EvaluationManifest.load(evaluation.path).choice
        if deploy_target == "none":
            watch.result(skipped="deploy_target is none")
        elif not choice["deployable"]:
            watch.result(skipped=choice["undeployable_reason"])
        else:
            rows = json.loads((Path(evaluation.path) / "smoke.json").read_text(encoding="utf-8"))
            watch.result(**deploy_release(config, registry=MlflowRegistry(tracking_uri), smoke_rows=rows, step=watch))
