"""Component `distill`."""

from kfp import dsl

from stillhouse.components.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def distill(
    name: str,
    student: str,
    layers: str,
    albert_embedding_size: int,
    albert_layers: int,
    hard_weight: float,
    soft_weight: float,
    cosine_weight: float,
    temperature: float,
    word_dropout: float,
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
    teacher: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Distil a student from the fine-tuned teacher: part of its layers, an ALBERT made from it, or a checkpoint.

    Args:
        name: The candidate's role, `student`.
        student: `teacher://` (a DistilBERT of the teacher's layers), `teacher://albert` (an ALBERT factorised from it), or a checkpoint with the teacher's tokenizer.
        layers: Layers of the teacher, counted from 1, such as `2,4,6`, that are copied (empty: every second one), or that a student which copies none follows (empty: evenly spaced ones).
        albert_embedding_size: Size of the factorised embeddings of `teacher://albert`.
        albert_layers: How many layers of `teacher://albert` a text passes; 0 takes the teacher's.
        hard_weight: Weight of the labels' cross-entropy.
        soft_weight: Weight of the divergence from the teacher's probabilities.
        cosine_weight: Weight of one minus the cosine between matched hidden states.
        temperature: Divisor of the logits before the softmax.
        word_dropout: Share of the tokens hidden from teacher and student alike, drawn anew at each step.
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
        teacher: The fine-tuned teacher.
        model: The distilled checkpoint, with `model.json`.
        metrics: Metrics on the validation split.
    """
    from pathlib import Path

    from stillhouse.components.metrics import log_metrics
    from stillhouse.progress import step
    from stillhouse.training import DistillationSettings, DistillConfig, launch
    from stillhouse.training.scale import ScaleConfig

    with step(f"distill-{name}") as watch:
        config = DistillConfig(
            name=name, student=student, layers=layers, albert_embedding_size=albert_embedding_size,
            albert_layers=albert_layers, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps, max_length=max_length, warmup_ratio=warmup_ratio,
            weight_decay=weight_decay, evaluations_per_epoch=evaluations_per_epoch,
            early_stopping_patience=early_stopping_patience, quality_metric=quality_metric, precision=precision,
            seed=seed, checkpoint_dir=checkpoint_dir, code_version=code_version,
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
            teacher_dir=Path(teacher.path),
            output_dir=Path(model.path),
            step=watch,
        )
        log_metrics(metrics, manifest.metrics)
        model.metadata.update({"family": manifest.family, "parameters": manifest.parameters, "recipe": manifest.recipe})
