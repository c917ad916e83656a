"""Component `inspect_source`."""

from typing import NamedTuple

from kfp import dsl

from stillhouse.components.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def inspect_source(
    task: str,
    data: str,
    validation_data: str,
    test_data: str,
    text_column: str,
    label_column: str,
    max_train_rows: int,
    max_validation_rows: int,
    max_test_rows: int,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    teacher: str,
    teacher_epochs: float,
    teacher_learning_rate: float,
    albert: str,
    albert_epochs: float,
    albert_learning_rate: float,
    albert_embedding_size: int,
    albert_layers: int,
    extra_candidates: list,
    extra_epochs: float,
    extra_learning_rate: float,
    student: str,
    student_epochs: float,
    student_learning_rate: float,
    distill_layers: str,
    distill_hard_weight: float,
    distill_soft_weight: float,
    distill_cosine_weight: float,
    distill_temperature: float,
    distill_word_dropout: float,
    student_prune_heads: float,
    student_prune_ffn: float,
    student_sparsity: float,
    prune_epochs: float,
    batch_size: int,
    gradient_accumulation_steps: int,
    max_length: int,
    warmup_ratio: float,
    weight_decay: float,
    evaluations_per_epoch: int,
    early_stopping_patience: int,
    precision: str,
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
    policy: str,
    min_retention: float,
    quality_metric: str,
    bootstrap_samples: int,
    latency_samples: int,
    throughput_rows: int,
    model_name: str,
    tracking_uri: str,
    experiment: str,
    run_name: str,
    deploy_target: str,
    serving_namespace: str,
    serving_values: dict,
    canary_weight: int,
    canary_minutes: int,
    prometheus_url: str,
    rollout_timeout_minutes: int,
    promotion: str,
    significance: float,
    deploy_conflict: str,
    skip_unchanged: bool,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    checkpoint_dir: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    train_cpu: str,
    train_memory: str,
    node_selector: dict,
    tolerations: list,
    pipeline_run: str,
) -> NamedTuple(
    "Inspection",
    [
        ("fingerprint", str),
        ("data_version", str),
        ("train_version", str),
        ("package_version", str),
        ("evaluate_version", str),
        ("gpus", str),
        ("run_digest", str),
        ("champion_version", str),
        ("champion_digest", str),
        ("candidates", list),
        ("extras", str),
        ("Output", str),  # under another name, kfp.local cannot read a condition that asks for it
    ],
):
    """Check every parameter of the run and read its source through once; never cached.

    All problems are reported at once. The outputs are what makes caching sound: a fingerprint of the source's present
    content, and the version of the code behind each cached step. `gpus` is what a training step's own pod needs;
    `run_digest` stands for everything that shapes what the run makes; `champion_version` and `champion_digest` name what
    it is compared with, and are empty where there is no champion or it is what this very run makes; `candidates` are the
    extra candidates, each as `NAME=CHECKPOINT`, and `extras` is `yes` where there are any, or `no`; `Output` is `yes`, or
    `no` where the run may end here, since the source has not changed since the champion was trained.

    Args:
        task: See the pipeline's parameter of that name; so are all others but the last.
        pipeline_run: What the orchestrator calls this run.
    """
    parameters = dict(locals())

    from stillhouse.inspection import inspect_run, record_unchanged
    from stillhouse.progress import step

    with step("inspect-source") as watch:
        found = inspect_run(parameters, step=watch)
        if found.unchanged:
            watch.result(**record_unchanged(found, parameters))
    versions = found.versions
    return (
        found.fingerprint,
        versions["prepare_data"],
        versions["train"],
        versions["package"],
        versions["evaluate"],
        found.gpus,
        found.run_digest,
        found.champion_version,
        found.champion_digest,
        found.candidates,
        "yes" if found.candidates else "no",
        found.proceed,
    )
