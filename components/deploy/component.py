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
    serving_namespace: str,
    serving_values: dict,
    canary_weight: int,
    canary_minutes: int,
    prometheus_url: str,
    rollout_timeout_minutes: int,
    evaluation: dsl.Input[dsl.Artifact],
):
    """Roll the registered version out to Triton if it was promoted, smoke-test it, and move the alias `champion`; never cached.

    What is not deployable, or not better than the champion, stays `challenger`; so does a version whose champion was
    replaced by another run meanwhile, and one that was withdrawn as a canary. That is a success, and the run's record in
    MLflow says why. What fails leaves the release before serving.

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
        serving_namespace: On Kubernetes, the namespace; empty takes the deployer's own.
        serving_values: On Kubernetes, Helm values for charts/triton.
        canary_weight: On Kubernetes, percent of the requests that a new version gets first; 0 is no canary.
        canary_minutes: How long a canary's metrics are watched.
        prometheus_url: Where they are asked for; empty looks at none.
        rollout_timeout_minutes: On Kubernetes, how long a release may take to become ready.
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
            serving_namespace=serving_namespace, serving_values=serving_values, canary_weight=canary_weight,
            canary_minutes=canary_minutes, prometheus_url=prometheus_url,
            rollout_timeout_minutes=rollout_timeout_minutes,
        )  # fmt: skip
        registry = MlflowRegistry(tracking_uri)
        done = roll_out(
            config, registry=registry, evaluation_dir=Path(evaluation.path), pipeline_run=pipeline_run, step=watch
        )
        watch.result(**done.result())
