"""Component `evaluate`."""

from typing import List, Optional  # noqa: UP035 (kfp reads these forms)

from kfp import dsl

from stillhouse.components.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def evaluate(
    policy: str,
    min_retention: float,
    quality_metric: str,
    bootstrap_samples: int,
    latency_samples: int,
    throughput_rows: int,
    promotion: str,
    significance: float,
    champion_version: str,
    seed: int,
    code_version: str,
    dataset: dsl.Input[dsl.Dataset],
    teacher_packages: dsl.Input[dsl.Model],
    student_packages: dsl.Input[dsl.Model],
    albert_packages: dsl.Input[dsl.Model],
    champion_packages: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    report: dsl.Output[dsl.HTML],
    extra_packages: Optional[dsl.Input[List[dsl.Model]]] = None,  # noqa: UP006, UP045
):
    """Measure every package on the test split, on one machine, choose one by policy, and compare it with the champion.

    Args:
        policy: `real-time`, `memory` or `quality`.
        min_retention: Least share of the FP32 teacher's quality that a candidate must keep.
        quality_metric: Metric that retention and the policies are computed from.
        bootstrap_samples: Resamples for the intervals.
        latency_samples: Test texts answered one at a time to measure latency, in each of 3 rounds.
        throughput_rows: Test rows answered in batches of 32 to measure throughput, over all rounds.
        promotion: `better` or `always`: when the chosen package may replace the champion.
        significance: Level of the tests against the champion.
        champion_version: The champion's registered version; empty where there is none to compare with.
        seed: Seed of the resamples and of the texts timed.
        code_version: Of the code behind this step, so that changed code runs again.
        dataset: Its test split is what is measured on.
        teacher_packages: The teacher, packaged.
        student_packages: The distilled student, packaged.
        albert_packages: The ALBERT, packaged.
        champion_packages: The champion's package, or none.
        evaluation: `evaluation.json` with every figure and the choice, and the plots.
        metrics: The chosen candidate's figures.
        confusion: The chosen candidate's confusion matrix.
        report: The report as one HTML page.
        extra_packages: The extra candidates, packaged, where there are any. What cannot be packaged is evaluated in PyTorch, and not chosen.
    """
    import shutil
    from pathlib import Path

    from stillhouse.components.metrics import log_confusion_matrix, log_metrics
    from stillhouse.evaluation import evaluate as library
    from stillhouse.progress import step

    with step("evaluate") as watch:
        config = library.EvaluateConfig(
            policy=policy, min_retention=min_retention, quality_metric=quality_metric,
            bootstrap_samples=bootstrap_samples, latency_samples=latency_samples, throughput_rows=throughput_rows,
            promotion=promotion, significance=significance, champion_version=champion_version, seed=seed,
        )  # fmt: skip
        output = Path(evaluation.path)
        manifest = library.evaluate(
            config,
            dataset_dir=Path(dataset.path),
            packages=[
                Path(p.path) for p in (teacher_packages, student_packages, albert_packages, *(extra_packages or ()))
            ],
            champion_dir=Path(champion_packages.path),
            output_dir=output,
            step=watch,
        )
        log_metrics(metrics, library.scalar_metrics(manifest))
        log_confusion_matrix(confusion, *library.confusion_matrix(manifest))
        shutil.copyfile(output / "report.html", report.path)
