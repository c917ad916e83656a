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
    max_queue_size: int,
    max_wait_ms: int,
    batch_rows: int,
    serving_device: str,
    encoder_instances: int,
    encoder_threads: int,
    encoder_in_front: bool,
    tensorrt: bool,
    response_cache: bool,
    fp32_tolerance: float,
    fp16_tolerance: float,
    int8_tolerance: float,
    calibration_rows: int,
    code_version: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    packages: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Export a model to ONNX in each precision, check it against PyTorch, and write Triton model repositories.

    An extra candidate that cannot be exported is refused without failing the run: the artifact says why, and holds the
    model for its evaluation in PyTorch.

    Args:
        name: The candidate's role: `teacher`, `student` or `albert`; empty for an extra candidate, which may turn out not to be servable.
        served_name: Name of the public Triton model.
        precisions: Comma-separated: `fp32`, and of `fp16`, `int8` and `int8-static` those wanted.
        max_text_bytes: Longer texts, in UTF-8 bytes, are refused before tokenising.
        max_batch_size: Largest number of texts in one request.
        max_queue_size: Requests that may wait at the endpoint; one more is refused at once.
        max_wait_ms: A request that would wait longer than this at the endpoint is refused at once; 0 is no limit.
        batch_rows: Texts of several requests that the endpoint takes together.
        serving_device: What the endpoint computes on: cpu or gpu.
        encoder_instances: Copies of the model at the endpoint, on each GPU where there are some.
        encoder_threads: Threads of each copy on a CPU; 0 is one per core.
        encoder_in_front: On a CPU, run the model in the process that reads the text: quicker, and in memory twice.
        tensorrt: On a GPU, serve with TensorRT (16-bit floats).
        response_cache: Answer repeated requests from memory where the server has a cache.
        fp32_tolerance: Largest absolute difference of an FP32 probability from PyTorch's.
        fp16_tolerance: Largest absolute difference of any FP16 probability from PyTorch's.
        int8_tolerance: Largest mean absolute difference of INT8 probabilities, of either kind, from PyTorch's.
        calibration_rows: Training rows on which static INT8 observes the ranges of activations.
        code_version: Of the code behind this step, so that changed code runs again.
        dataset: Its validation rows are what parity is measured on; its training rows calibrate static INT8.
        model: The trained checkpoint.
        packages: One package per precision, with `packages.json`; or the reason why there is none, and the model.
        metrics: Parity and size of each precision.
    """
    from pathlib import Path

    from stillhouse.artifacts import ModelManifest, PackageManifest
    from stillhouse.components.metrics import log_metrics
    from stillhouse.export import PackageConfig
    from stillhouse.export.package import package_model
    from stillhouse.progress import step
    from stillhouse.serving.repository import ServingOptions

    with step(f"package-{name or ModelManifest.load(model.path).name}") as watch:
        options = ServingOptions(
            max_text_bytes=max_text_bytes, max_batch_size=max_batch_size, max_queue_size=max_queue_size,
            max_wait_ms=max_wait_ms, batch_rows=batch_rows, serving_device=serving_device, encoder_instances=encoder_instances,
            encoder_threads=encoder_threads, encoder_in_front=encoder_in_front, tensorrt=tensorrt,
            response_cache=response_cache,
        )  # fmt: skip
        config = PackageConfig(
            served_name=served_name, precisions=precisions, options=options, fp32_tolerance=fp32_tolerance,
            fp16_tolerance=fp16_tolerance, int8_tolerance=int8_tolerance, calibration_rows=calibration_rows,
        )  # fmt: skip
        root = Path(packages.path)
        manifest = package_model(
            config, model_dir=Path(model.path), dataset_dir=Path(dataset.path), output_dir=root, required=bool(name),
            step=watch,
        )  # fmt: skip
        figures = {}
        for precision in manifest.precisions:
            one = PackageManifest.load(root / precision)
            figures[f"{precision}_megabytes"] = round(one.bytes / 1e6, 1)
            figures[f"{precision}_max_difference"] = one.parity["max_difference"]
        log_metrics(metrics, figures)
        refused = manifest.unservable or str(manifest.refused)
        packages.metadata.update({"precisions": ",".join(manifest.precisions), "refused": refused})
