"""Component `finetune`."""

from typing import Optional

from kfp import dsl

from stillhouse.components.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def finetune(
    name: str,
    checkpoint: str,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    gradient_accumulation_steps: int,
    max_length: int,
    warmup_ratio: float,
    weight_decay: float,
    evaluations_per_epoch: int,
    early_stopping_patience: int,
    quality_metric: str,
    precision: str,
    seed: int,
    checkpoint_dir: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    code_version: str,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    embedding_size: int = 128,
    layers: int = 0,
    hard_weight: float = 0.2,
    soft_weight: float = 0.8,
    cosine_weight: float = 1.0,
    temperature: float = 2.0,
    word_dropout: float = 0.15,
    teacher: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 (kfp reads this form)
):
    """Fine-tune a checkpoint on the dataset's task, or make an ALBERT from the teacher and train it.

    Args:
        name: The candidate's role: `teacher` or `albert`; empty for an extra candidate, which `checkpoint` names.
        checkpoint: A folder, `hub://OWNER/NAME`, `minilm://`, `scratch://FAMILY?…`, `teacher://` or `teacher://albert?layer_sharing=…`; of an extra candidate, `NAME=CHECKPOINT`.
        epochs: Passes over the training rows.
        learning_rate: Peak learning rate.
        batch_size: Rows per optimizer step and device.
        gradient_accumulation_steps: Batches summed into one optimizer step.
        max_length: Tokens after which a text is cut.
        warmup_ratio: Share of the steps over which the learning rate rises.
        weight_decay: AdamW's decoupled weight decay.
        evaluations_per_epoch: Evaluations, and checkpoints, per epoch.
        early_stopping_patience: Evaluations without improvement after which training stops; 0 never stops early.
        quality_metric: Validation metric that picks the best checkpoint.
        precision: `auto`, `fp32` or `bf16`.
        seed: Seed of shuffling, dropout and fresh weights.
        checkpoint_dir: Where resumable checkpoints are kept, and machines meet that train together: a path or URI; empty keeps none beyond the step.
        num_nodes: Machines to train on; above 1, in the pods of a TrainJob.
        gpus_per_node: GPUs of each machine, one process each; above 1, in the pods of a TrainJob, or on a laptop in processes of the step.
        gpu_type: Kubernetes resource name of the GPUs.
        code_version: Of the code behind this step, so that changed code runs again.
        dataset: What to train on.
        model: The trained checkpoint, with `model.json`.
        metrics: Metrics on the validation split.
        embedding_size: Size of the factorised embeddings of an ALBERT made from the teacher.
        layers: How many layers of such an ALBERT a text passes; 0 takes the teacher's layers.
        hard_weight: Weight of the labels' cross-entropy when learning from the teacher.
        soft_weight: Weight of the divergence from the teacher's probabilities.
        cosine_weight: Weight of one minus the cosine between hidden states.
        temperature: Divisor of the logits before the softmax.
        word_dropout: Share of the tokens hidden from teacher and student alike, drawn anew at each step.
        teacher: The trained teacher, for the checkpoint `teacher://`.
    """
    from pathlib import Path

    from stillhouse.components.metrics import log_metrics
    from stillhouse.models.candidates import parse_candidate
    from stillhouse.progress import step
    from stillhouse.training import DistillationSettings, FinetuneConfig, launch
    from stillhouse.training.scale import ScaleConfig

    if not name:
        candidate = parse_candidate(checkpoint)
        name, checkpoint = candidate.name, candidate.checkpoint
    with step(f"finetune-{name}") as watch:
        config = FinetuneConfig(
            name=name, checkpoint=checkpoint, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps, max_length=max_length, warmup_ratio=warmup_ratio,
            weight_decay=weight_decay, evaluations_per_epoch=evaluations_per_epoch,
            early_stopping_patience=early_stopping_patience, quality_metric=quality_metric, precision=precision,
            seed=seed, checkpoint_dir=checkpoint_dir, code_version=code_version, embedding_size=embedding_size, layers=layers,
            distillation=DistillationSettings(
                hard=hard_weight, soft=soft_weight, cosine=cosine_weight, temperature=temperature,
                word_dropout=word_dropout,
            ),
        )  # fmt: skip
        manifest = launch.train(
            config,
            scale=ScaleConfig(
                num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu_type=gpu_type, checkpoint_dir=checkpoint_dir
            ),
            dataset_dir=Path(dataset.path),
            output_dir=Path(model.path),
            teacher_dir=Path(teacher.path) if teacher and checkpoint.startswith("teacher://") else None,
            step=watch,
        )
        log_metrics(metrics, manifest.metrics)
        model.metadata.update({"family": manifest.family, "parameters": manifest.parameters, "recipe": manifest.recipe})
