"""Component `record_pretraining`."""

from kfp import dsl

from stillhouse.components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def record_pretraining(
    model_name: str,
    tracking_uri: str,
    experiment: str,
    run_name: str,
    pipeline_run: str,
    output: str,
    documents: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Input[dsl.Model],
):
    """Write the loss and evaluation curves and the settings to MLflow, and a copy of the checkpoint; never cached.

    Args:
        model_name: Name of the checkpoint.
        tracking_uri: MLflow's tracking URI; empty takes `MLFLOW_TRACKING_URI`.
        experiment: MLflow experiment.
        run_name: Name of the MLflow run.
        pipeline_run: What the orchestrator calls this run.
        output: Where a copy of the checkpoint goes: a path or an object-store URI; empty makes none.
        documents: What the model was pretrained on.
        checkpoint: The pretrained checkpoint.
    """
    from pathlib import Path

    from stillhouse.progress import step
    from stillhouse.registry import MlflowRegistry, PretrainingRecord

    with step("record-pretraining") as watch:
        config = PretrainingRecord(
            model_name=model_name, experiment=experiment, run_name=run_name, pipeline_run=pipeline_run, output=output
        )
        recorded = MlflowRegistry(tracking_uri).record_pretraining(
            config, corpus_dir=Path(documents.path), model_dir=Path(checkpoint.path), step=watch
        )
        watch.result(**recorded.result())
