"""Component `register`."""

from typing import List, Optional  # noqa: UP035 (kfp reads these forms)

from kfp import dsl

from stillhouse.components.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def register(
    model_name: str,
    tracking_uri: str,
    experiment: str,
    run_name: str,
    run_digest: str,
    pipeline_run: str,
    dataset: dsl.Input[dsl.Dataset],
    teacher_model: dsl.Input[dsl.Model],
    student_model: dsl.Input[dsl.Model],
    albert_model: dsl.Input[dsl.Model],
    teacher_packages: dsl.Input[dsl.Model],
    student_packages: dsl.Input[dsl.Model],
    albert_packages: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    extra_models: Optional[dsl.Input[List[dsl.Model]]] = None,  # noqa: UP006, UP045
    extra_packages: Optional[dsl.Input[List[dsl.Model]]] = None,  # noqa: UP006, UP045
) -> str:
    """Register the chosen package in MLflow, with its lineage, under the alias `challenger`; never cached.

    Args:
        model_name: Name of the registered model.
        tracking_uri: MLflow's tracking URI; empty takes `MLFLOW_TRACKING_URI`.
        experiment: MLflow experiment.
        run_name: Name of the MLflow run.
        run_digest: Of everything that shaped what is registered.
        pipeline_run: What the orchestrator calls this run.
        dataset: What was trained and tested on.
        teacher_model: The teacher's checkpoint.
        student_model: The student's checkpoint.
        albert_model: The ALBERT's checkpoint.
        teacher_packages: The teacher, packaged.
        student_packages: The student, packaged.
        albert_packages: The ALBERT, packaged.
        evaluation: The figures and the choice.
        extra_models: The checkpoints of the extra candidates, where there are any.
        extra_packages: The extra candidates, packaged.
    """
    from pathlib import Path

    from stillhouse.progress import step
    from stillhouse.registry import MlflowRegistry, RegisterConfig

    with step("register") as watch:
        registry = MlflowRegistry(tracking_uri)
        config = RegisterConfig(
            model_name=model_name, tracking_uri=tracking_uri, experiment=experiment, run_name=run_name,
            run_digest=run_digest, pipeline_run=pipeline_run,
        )  # fmt: skip
        registered = registry.register(
            config,
            dataset_dir=Path(dataset.path),
            packages=[
                Path(p.path) for p in (teacher_packages, student_packages, albert_packages, *(extra_packages or ()))
            ],
            models=[Path(m.path) for m in (teacher_model, student_model, albert_model, *(extra_models or ()))],
            evaluation_dir=Path(evaluation.path),
            step=watch,
        )
        watch.result(
            evaluation_dir=evaluation.path,
            model_name=registered.name,
            version=registered.version,
            run_id=registered.run_id,
            reused=registered.reused,
        )
    return registered.version
