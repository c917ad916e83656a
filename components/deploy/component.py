"""Component `deploy`."""

from kfp import dsl

from stillhouse.components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def deploy(
    model_name: str,
    version: str,
    tracking_uri: str,
    deploy_target: str,
    deploy_conflict: str,
    pipeline_run: str,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    evaluation: dsl.Input[dsl.Artifact],
):
    """Roll the registered version out to Triton if it was promoted, smoke-test it, and move the alias `champion`; never cached.

    What is not deployable, or not better than the champion, stays `challenger`; so does a version whose champion was
    replaced by another run meanwhile. That is a success, and the run's record in MLflow says why.

    Args:
        model_name: Name of the registered and served model.
        version: The registered version.
        tracking_uri: MLflow's tracking URI; empty takes `MLFLOW_TRACKING_URI`.
        deploy_target: `none`, `local` or `kubernetes`.
        deploy_conflict: `wait` or `yield`, where another run is deploying the same model.
        pipeline_run: What the orchestrator calls this run.
        grpc_port: Port of the local server's gRPC endpoint, on loopback.
        http_port: Port of the local server's HTTP endpoint, on loopback.
        metrics_port: Port of the local server's metrics, on loopback.
        evaluation: Says whether the choice may be served, and holds test rows whose answers are known.
    """
    from pathlib import Path

    from stillhouse.deploy import DeployConfig, roll_out
    from stillhouse.progress import step
    from stillhouse.registry import MlflowRegistry

    with step("deploy") as watch:
        config = DeployConfig(
            model_name=model_name, version=version, tracking_uri=tracking_uri, deploy_target=deploy_target,
            deploy_conflict=deploy_conflict, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port,
        )  # fmt: skip
        registry = MlflowRegistry(tracking_uri)
        done = roll_out(
            config, registry=registry, evaluation_dir=Path(evaluation.path), pipeline_run=pipeline_run, step=watch
        )
        watch.result(**done.result())
