"""Component `inspect_corpus`."""

from typing import NamedTuple

from kfp import dsl

from stillhouse.components.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def inspect_corpus(
    corpus: str,
    text_column: str,
    model_name: str,
    tokenizer: str,
    max_documents: int,
    validation_fraction: float,
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
    output: str,
    tracking_uri: str,
    experiment: str,
    run_name: str,
    num_nodes: int,
    gpus_per_node: int,
    gpu_type: str,
    train_cpu: str,
    train_memory: str,
    node_selector: dict,
    tolerations: list,
) -> NamedTuple(
    "Inspection",
    [("fingerprint", str), ("corpus_version", str), ("pretrain_version", str), ("gpus", str)],
):
    """Check every parameter of the run and read its corpus through once; never cached.

    All problems are reported at once. The outputs are what makes caching sound: a fingerprint of the corpus's present
    content, and the version of the code behind each cached step; what is in folders of checkpoints counts to them.
    `gpus` is what the training step's own pod needs.
    """
    parameters = dict(locals())

    from stillhouse.inspection.pretraining import inspect_pretraining
    from stillhouse.progress import step

    with step("inspect-corpus") as watch:
        found = inspect_pretraining(parameters, step=watch)
    return found.fingerprint, found.corpus_version, found.pretrain_version, found.gpus
