"""Component `notify`."""

from kfp import dsl

from stillhouse.components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def notify(status: dsl.PipelineTaskFinalStatus, model_name: str, data: str, tracking_uri: str, pipeline_run: str):
    """Post how the run ended, and what came of it, to the webhook named by `STILLHOUSE_WEBHOOK_URL`, if it is set.

    Args:
        status: How the run ended.
        model_name: Name of the registered model.
        data: Source of the training rows.
        tracking_uri: MLflow's tracking URI, where the run left what came of it; empty takes `MLFLOW_TRACKING_URI`.
        pipeline_run: What the orchestrator calls this run.
    """
    from stillhouse.deploy.notify import notify as post
    from stillhouse.progress import step

    with step("notify"):
        post(
            state=status.state, model_name=model_name, data=data, error=status.error_message or "",
            tracking_uri=tracking_uri, pipeline_run=pipeline_run,
        )  # fmt: skip
