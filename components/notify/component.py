"""Component `notify`."""

from kfp import dsl

from stillhouse.components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def notify(status: dsl.PipelineTaskFinalStatus, model_name: str, data: str):
    """Post how the run ended to the webhook named by `STILLHOUSE_WEBHOOK_URL`; does nothing where it is not set.

    Args:
        status: How the run ended.
        model_name: Name of the registered model.
        data: Source of the training rows.
    """
    from stillhouse.deploy.notify import notify as post
    from stillhouse.progress import step

    with step("notify"):
        post(state=status.state, model_name=model_name, data=data, error=status.error_message or "")
