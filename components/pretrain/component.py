"""Component `pretrain`."""

from kfp import dsl

from stillhouse.components.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def pretrain(
    model_name: str,
    model: str,
    objective: str,
    teacher: str,
    layers: str,
    sequence_length: int,
    whole_word_masking: bool,
    mask_ngrams: int,
    mask_probability: float,
    sentence_weight: float,
    steps: int,
    batch_size: int,
    gradient_accumulation_steps: int,
    optimizer: str,
    learning_rate: float,
    warmup_ratio: float,
    weight_decay: float,
    ce_weight: float,
    mlm_weight: float,
    cosine_weight: float,
    temperature: float,
    head_steps: int,
    evaluations: int,
    precision: str,
    seed: int,
    checkpoint_dir: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    code_version: str,
    documents: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Pretrain a model on the prepared documents.

    Args:
        model_name: Name of the checkpoint.
        model: What is pretrained: `scratch://FAMILY?…`, a checkpoint to go on with, or `teacher://…`.
        objective: `mlm`, `mlm+nsp`, `mlm+sop` or `triple`.
        teacher: Checkpoint to distil from, for `triple`.
        layers: Layers of the teacher that `teacher://` copies, counted from 1, such as `2,4,6`; empty takes every second one.
        sequence_length: Tokens of a sequence; documents are packed to fill it.
        whole_word_masking: Mask all pieces of a word together.
        mask_ngrams: Mask up to so many whole words together, fewer of them more often.
        mask_probability: Share of the tokens that are to be predicted.
        sentence_weight: For `mlm+nsp` and `mlm+sop`, weight of the sentence task's loss beside the masked-language loss.
        steps: Optimizer steps.
        batch_size: Sequences per optimizer step and device.
        gradient_accumulation_steps: Batches summed into one optimizer step.
        optimizer: `adamw`, or `lamb` for batches of thousands of sequences, as ALBERT is pretrained.
        learning_rate: Peak learning rate.
        warmup_ratio: Share of the steps over which the learning rate rises.
        weight_decay: Decoupled weight decay.
        ce_weight: For `triple`, weight of the divergence from the teacher's softened predictions.
        mlm_weight: For `triple`, weight of the masked-language loss.
        cosine_weight: For `triple`, weight of one minus the cosine between hidden states.
        temperature: For `triple`, divisor of the logits before the softmax.
        head_steps: For `triple`, steps that fit a language-model head on a teacher that has none.
        evaluations: Evaluations on the held-out documents, each with a checkpoint.
        precision: `auto`, `fp32` or `bf16`.
        seed: Seed of masking, shuffling, dropout and fresh weights.
        checkpoint_dir: Where resumable checkpoints are kept, and machines meet that train together: a path or URI; empty keeps none beyond the step.
        num_nodes: Machines to train on; above 1, in the pods of a TrainJob.
        gpus_per_node: GPUs of each machine, one process each; above 1, in the pods of a TrainJob, or on a laptop in processes of the step.
        gpu_type: Kubernetes resource name of the GPUs.
        code_version: Of the code behind this step, and of what is in the folders that it reads, so that a change runs again.
        documents: What to pretrain on.
        checkpoint: The pretrained checkpoint, with `model.json` and `history.json`.
        metrics: Metrics on the held-out documents.
    """
    parameters = dict(locals())

    from pathlib import Path

    from stillhouse.components.metrics import log_metrics
    from stillhouse.inspection.pretraining import pretrain_config
    from stillhouse.progress import step
    from stillhouse.training import launch
    from stillhouse.training.scale import ScaleConfig

    with step("pretrain") as watch:
        manifest = launch.pretrain(
            pretrain_config(parameters, code_version=code_version),
            scale=ScaleConfig(
                num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu_type=gpu_type, checkpoint_dir=checkpoint_dir
            ),
            corpus_dir=Path(documents.path),
            output_dir=Path(checkpoint.path),
            step=watch,
        )
        log_metrics(metrics, manifest.metrics)
        facts = {"family": manifest.family, "parameters": manifest.parameters, "recipe": manifest.recipe}
        checkpoint.metadata.update(facts)
