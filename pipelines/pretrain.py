"""The pretraining pipeline: documents in, a checkpoint for the main pipeline out.

inspect_corpus ── prepare_corpus ── pretrain ── record_pretraining
                                  (exit handler: notify)
"""

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from stillhouse.components.inspect_corpus.component import inspect_corpus
from stillhouse.components.notify.component import notify
from stillhouse.components.prepare_corpus.component import prepare_corpus
from stillhouse.components.pretrain.component import pretrain as pretraining
from stillhouse.components.record_pretraining.component import record_pretraining
from stillhouse.pipelines.wiring import Cluster, Wiring, description


def define(cluster: Cluster | None = None) -> BaseComponent:
    """The pipeline; with a `cluster`, its steps carry what they need there."""

    def pretrain(
        corpus: str,
        text_column: str = "text",
        model_name: str = "pretrained",
        tokenizer: str = "train://wordpiece?vocab_size=8192",
        max_documents: int = 0,
        validation_fraction: float = 0.02,
        model: str = "scratch://bert",
        objective: str = "mlm+nsp",
        teacher: str = "",
        layers: str = "",
        sequence_length: int = 128,
        whole_word_masking: bool = False,
        mask_ngrams: int = 1,
        mask_probability: float = 0.15,
        sentence_weight: float = 1.0,
        steps: int = 1000,
        batch_size: int = 32,
        gradient_accumulation_steps: int = 1,
        optimizer: str = "adamw",
        learning_rate: float = 1e-4,
        warmup_ratio: float = 0.06,
        weight_decay: float = 0.01,
        ce_weight: float = 5.0,
        mlm_weight: float = 2.0,
        cosine_weight: float = 1.0,
        temperature: float = 2.0,
        head_steps: int = 200,
        evaluations: int = 10,
        precision: str = "auto",
        seed: int = 42,
        checkpoint_dir: str = "",
        output: str = "",
        tracking_uri: str = "",
        experiment: str = "stillhouse-pretraining",
        run_name: str = "",
        num_nodes: int = 1,
        gpus_per_node: int = 0,
        gpu_type: str = "nvidia.com/gpu",
        train_cpu: str = "2",
        train_memory: str = "8Gi",
        node_selector: dict = {},  # noqa: B006 (kfp takes the default from here, and nothing changes it)
        tolerations: list = [],  # noqa: B006
    ):
        """Pretrain a BERT, an ALBERT or a DistilBERT on documents, as their papers do, for fine-tuning and distillation.

        Args:
            corpus: Documents: a text, JSONL or Parquet file or a folder of them (path, s3://, gs://, https://). In text files, blank lines separate them.
            text_column: Column that holds a document's text, in JSONL and Parquet.
            model_name: Name of the checkpoint, in its manifest and in MLflow.
            tokenizer: train://wordpiece?vocab_size=N or train://unigram?vocab_size=N, trained on the corpus; or that of a checkpoint: a folder, hub://OWNER/NAME[@REVISION] or minilm://.
            max_documents: Read so many documents; 0 reads all.
            validation_fraction: Share of the documents held out, on which the model is evaluated.
            model: What is pretrained: scratch://FAMILY?FIELD=VALUE&…, a checkpoint to go on with (a folder, hub://OWNER/NAME), teacher:// for a DistilBERT made of the teacher's layers, or teacher://albert?embedding_size=…&layers=… for an ALBERT factorised from it.
            objective: mlm (masked words), mlm+nsp (BERT's, with next-sentence prediction), mlm+sop (ALBERT's, with sentence-order prediction) or triple (DistilBERT's, from a teacher; for an ALBERT too).
            teacher: Checkpoint to distil from, for the objective triple: a folder, hub://OWNER/NAME[@REVISION] or minilm://.
            layers: Layers of the teacher that teacher:// copies, counted from 1, such as 2,4,6; empty takes every second one.
            sequence_length: Tokens of a sequence; documents are packed to fill it.
            whole_word_masking: Mask all pieces of a word together.
            mask_ngrams: Mask up to so many whole words together, fewer of them more often; ALBERT masks up to 3.
            mask_probability: Share of the tokens that are to be predicted.
            sentence_weight: For mlm+nsp and mlm+sop, weight of the sentence task's loss beside the masked-language loss.
            steps: Optimizer steps.
            batch_size: Sequences per optimizer step and device.
            gradient_accumulation_steps: Batches summed into one optimizer step.
            optimizer: `adamw`, or `lamb` for batches of thousands of sequences, as ALBERT is pretrained.
            learning_rate: Peak learning rate.
            warmup_ratio: Share of the steps over which the learning rate rises.
            weight_decay: Decoupled weight decay.
            ce_weight: For triple, weight of the divergence from the teacher's softened predictions.
            mlm_weight: For triple, weight of the masked-language loss.
            cosine_weight: For triple, weight of one minus the cosine between hidden states.
            temperature: For triple, divisor of the logits before the softmax.
            head_steps: For triple, steps that fit a language-model head on a teacher that has none.
            evaluations: Evaluations on the held-out documents, spread over the steps, each with a checkpoint.
            precision: Of training: auto (bf16 where GPU or CPU have it), fp32 or bf16.
            seed: Seed of everything random.
            checkpoint_dir: Where resumable checkpoints are kept: a path on a volume or an object-store URI; empty keeps none between runs.
            output: Where a copy of the pretrained checkpoint goes: a path on a volume or an object-store URI; empty makes none beside the run's own.
            tracking_uri: MLflow's tracking URI; empty takes MLFLOW_TRACKING_URI.
            experiment: MLflow experiment that the curves are written to.
            run_name: Name of the MLflow run; empty lets MLflow choose.
            num_nodes: Machines that the training runs on; above 1, under Kubeflow Trainer.
            gpus_per_node: GPUs of each machine that trains; above 1, under Kubeflow Trainer. On a laptop, training takes the GPU that is there.
            gpu_type: Kubernetes resource name of the GPUs.
            train_cpu: CPUs requested for each machine that trains, as a Kubernetes quantity.
            train_memory: Memory of each machine that trains, as a Kubernetes quantity.
            node_selector: Labels of the nodes to train on, as a JSON object.
            tolerations: Taints that training tolerates, as a JSON list of Kubernetes tolerations.
        """
        wiring = Wiring(dict(locals()))
        step = wiring.step

        this_run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        ending = step("Notify", notify, cached=False, data=corpus, pipeline_run=this_run)
        with dsl.ExitHandler(ending, name="Pretrain"):
            # Never cached: the corpus may have changed behind an unchanged name.
            found = step("Inspect corpus", inspect_corpus, cached=False).outputs
            documents = step(
                "Prepare corpus", prepare_corpus, fingerprint=found["fingerprint"], code_version=found["corpus_version"]
            ).outputs["documents"]
            checkpoint = step(
                "Pretrain", pretraining, documents=documents, code_version=found["pretrain_version"]
            ).outputs["checkpoint"]
            step(
                "Record the curves", record_pretraining, cached=False, pipeline_run=this_run, documents=documents,
                checkpoint=checkpoint,
            )  # fmt: skip

        if cluster is not None:
            resources = dict(
                cpu=train_cpu, memory=train_memory, gpus=found["gpus"], gpu_type=gpu_type, node_selector=node_selector,
                tolerations=tolerations,
            )  # fmt: skip
            cluster.apply(wiring.tasks, resources)

    pipeline = dsl.pipeline(
        name="stillhouse-pretrain", display_name="Pretrain a language model", description=description(pretrain)
    )
    return pipeline(pretrain)


pretrain = define()
"""The pipeline as it runs on one machine."""
