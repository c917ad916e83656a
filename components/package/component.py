"""Component `package`."""

from kfp import dsl

from stillhouse.components.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def package(
    name: str,
    served_name: str,
    precisions: str,
    max_text_bytes: int,
    max_batch_size: int,
    fp32_tolerance: float,
    int8_tolerance: float,
    code_version: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    packages: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Export a model to ONNX in each precision, check it against PyTorch, and write Triton model repositories.

    Args:
        name: The candidate's role: `teacher`, `student` or `albert`.
        served_name: Name of the public Triton model.
        precisions: Comma-separated: `fp32`, or `fp32,int8`.
        max_text_bytes: Longer texts, in UTF-8 bytes, are refused before tokenising.
        max_batch_size: Largest number of texts in one request.
        fp32_tolerance: Largest absolute difference of an FP32 probability from PyTorch's.
        int8_tolerance: Largest mean absolute difference of INT8 probabilities from PyTorch's.
        code_version: Of the code behind this step, so that changed code runs again.
        dataset: Its validation rows are what parity is measured on.
        model: The trained checkpoint.
        packages: One package per precision, with `packages.json`.
        metrics: Parity and size of each precision.
    """
    from pathlib import Path

    from stillhouse.artifacts import PackageManifest
    from stillhouse.components.metrics import log_metrics
    from stillhouse.export import PackageConfig
    from stillhouse.export.package import package_model
    from stillhouse.progress import step

    with step(f"package-{name}") as watch:
        config = PackageConfig(
            served_name=served_name, precisions=precisions, max_text_bytes=max_text_bytes,
            max_batch_size=max_batch_size, fp32_tolerance=fp32_tolerance, int8_tolerance=int8_tolerance,
        )  # fmt: skip
        root = Path(packages.path)
        manifest = package_model(
            config, model_dir=Path(model.path), dataset_dir=Path(dataset.path), output_dir=root, step=watch
        )
        figures = {}
        for precision in manifest.precisions:
            one = PackageManifest.load(root / precision)
            figures[f"{precision}_megabytes"] = round(one.bytes / 1e6, 1)
            figures[f"{precision}_max_difference"] = one.parity["max_difference"]
        log_metrics(metrics, figures)
        packages.metadata.update({"precisions": ",".join(manifest.precisions), "refused": str(manifest.refused)})
