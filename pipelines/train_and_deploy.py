"""The main pipeline: labelled text in, the best of three models, or of more, behind Triton out.

    inspect_source ── prepare_data ── finetune (teacher) ─┬─ distill (student) ── package ─┐
                │                         │               └─ finetune (ALBERT) ── package ─┼─ evaluate ── register ── deploy
                │                         └─────────────────────────────────────  package ─┤    (exit handler: notify)
                └─ fetch_champion ─────────────────────────────────────────────────────────┘

With `skip_unchanged`, everything after the first step is left out where the source has not changed since the champion was
trained. The ALBERT comes after the teacher, since with `albert=teacher://` it is made from it; it trains beside the student.

Extra candidates, where there are any, are each fine-tuned and packaged in a loop before the evaluation.
"""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from stillhouse.components.deploy.component import deploy
from stillhouse.components.distill.component import distill
from stillhouse.components.evaluate.component import evaluate
from stillhouse.components.fetch_champion.component import fetch_champion
from stillhouse.components.finetune.component import finetune
from stillhouse.components.inspect_source.component import inspect_source
from stillhouse.components.notify.component import notify
from stillhouse.components.package.component import package
from stillhouse.components.prepare_data.component import prepare_data
from stillhouse.components.register.component import register
from stillhouse.pipelines.wiring import Cluster, Wiring, description


def define(cluster: Cluster | None = None) -> BaseComponent:
    """The pipeline; with a `cluster`, its steps carry what they need there."""

    def train_and_deploy(
        data: str,
        text_column: str = "text",
        label_column: str = "label",
        model_name: str = "stillhouse",
        task: str = "classification",
        validation_data: str = "",
        test_data: str = "",
        max_train_rows: int = 0,
        max_validation_rows: int = 0,
        max_test_rows: int = 0,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        teacher: str = "hub://google-bert/bert-base-uncased",
        teacher_epochs: float = 3.0,
        teacher_learning_rate: float = 3e-5,
        student: str = "teacher://",
        student_epochs: float = 3.0,
        student_learning_rate: float = 5e-5,
        albert: str = "hub://albert/albert-base-v2",
        albert_epochs: float = 3.0,
        albert_learning_rate: float = 2e-5,
        albert_embedding_size: int = 128,
        albert_layers: int = 0,
        extra_candidates: list = [],  # noqa: B006
        extra_epochs: float = 3.0,
        extra_learning_rate: float = 2e-5,
        distill_layers: str = "",
        distill_hard_weight: float = 0.2,
        distill_soft_weight: float = 0.8,
        distill_cosine_weight: float = 1.0,
        distill_temperature: float = 2.0,
        distill_word_dropout: float = 0.15,
        student_prune_heads: float = 0.0,
        student_prune_ffn: float = 0.0,
        student_sparsity: float = 0.0,
        prune_epochs: float = 1.0,
        batch_size: int = 32,
        gradient_accumulation_steps: int = 1,
        max_length: int = 128,
        warmup_ratio: float = 0.1,
        weight_decay: float = 0.01,
        evaluations_per_epoch: int = 2,
        early_stopping_patience: int = 4,
        precision: str = "auto",
        seed: int = 42,
        checkpoint_dir: str = "",
        precisions: str = "fp32,int8",
        max_text_bytes: int = 20000,
        max_batch_size: int = 64,
        max_queue_size: int = 256,
        max_wait_ms: int = 1000,
        batch_rows: int = 8,
        serving_device: str = "cpu",
        encoder_instances: int = 1,
        encoder_threads: int = 0,
        encoder_in_front: bool = False,
        tensorrt: bool = False,
        response_cache: bool = False,
        fp32_tolerance: float = 0.001,
        fp16_tolerance: float = 0.02,
        int8_tolerance: float = 0.05,
        calibration_rows: int = 128,
        policy: str = "real-time",
        min_retention: float = 0.97,
        quality_metric: str = "accuracy",
        bootstrap_samples: int = 1000,
        latency_samples: int = 200,
        throughput_rows: int = 512,
        tracking_uri: str = "",
        experiment: str = "stillhouse",
        run_name: str = "",
        deploy_target: str = "none",
        serving_namespace: str = "",
        serving_values: dict = {},  # noqa: B006 (kfp takes the default from here, and nothing changes it)
        canary_weight: int = 0,
        canary_minutes: int = 15,
        prometheus_url: str = "",
        rollout_timeout_minutes: int = 20,
        promotion: str = "better",
        significance: float = 0.05,
        deploy_conflict: str = "wait",
        skip_unchanged: bool = False,
        grpc_port: int = 8001,
        http_port: int = 8000,
        metrics_port: int = 8002,
        num_nodes: int = 1,
        gpus_per_node: int = 0,
        gpu_type: str = "nvidia.com/gpu",
        train_cpu: str = "2",
        train_memory: str = "8Gi",
        node_selector: dict = {},  # noqa: B006
        tolerations: list = [],  # noqa: B006
    ):
        """Fine-tune a BERT teacher, distil a DistilBERT from it, train an ALBERT beside it, measure them, serve the best.

        Args:
            data: Labelled rows: a CSV, TSV, JSONL or Parquet file or a folder of them (path, s3://, gs://, https://), hub://OWNER/NAME, or demo://reviews.
            text_column: Column that holds the text.
            label_column: Column that holds the label.
            model_name: Name of the registered model and of the served one.
            task: Kind of prediction; `classification` gives each text one label.
            validation_data: Validation rows; empty splits them from `data`.
            test_data: Test rows; empty splits them from `data`.
            max_train_rows: Train on a seeded sample of so many rows; 0 takes all.
            max_validation_rows: The same for validation.
            max_test_rows: The same for test.
            validation_fraction: Share of `data` for validation, where no validation data is given.
            test_fraction: Share of `data` for test, where no test data is given.
            teacher: BERT or RoBERTa checkpoint to fine-tune: a folder, hub://OWNER/NAME[@REVISION], minilm://, or scratch://bert?FIELD=VALUE&….
            teacher_epochs: Passes over the training rows for the teacher.
            teacher_learning_rate: The teacher's peak learning rate.
            student: Where the student comes from: teacher:// (a DistilBERT of the teacher's layers), teacher://albert (an ALBERT factorised from it), or a checkpoint with the teacher's tokenizer, in the same forms.
            student_epochs: Passes over the training rows for the student.
            student_learning_rate: The student's peak learning rate.
            albert: ALBERT checkpoint to fine-tune, in the same forms, or teacher:// to make one from the teacher; teacher://albert?layer_sharing=… says what its layers share (all, attention, ffn or none).
            albert_epochs: Passes over the training rows for the ALBERT.
            albert_learning_rate: The ALBERT's peak learning rate.
            albert_embedding_size: Size of the factorised embeddings, where an ALBERT is made from the teacher.
            albert_layers: How many layers of such an ALBERT a text passes; 0 takes the teacher's number of layers.
            extra_candidates: Checkpoints of any family to fine-tune and compare beside the three, as a JSON list of CHECKPOINT or NAME=CHECKPOINT, such as ["hub://FacebookAI/roberta-base"].
            extra_epochs: Passes over the training rows for each extra candidate.
            extra_learning_rate: The extra candidates' peak learning rate.
            distill_layers: Layers of the teacher, counted from 1, such as 2,4,6, that the student copies (empty: every second one), or that a student which copies none follows (empty: evenly spaced ones).
            distill_hard_weight: Weight of the labels' cross-entropy in the distillation loss.
            distill_soft_weight: Weight of the divergence from the teacher's softened probabilities.
            distill_cosine_weight: Weight of one minus the cosine between matched hidden states.
            distill_temperature: Divisor of the logits before the softmax.
            distill_word_dropout: Share of the tokens hidden from teacher and student alike, drawn anew at each step.
            student_prune_heads: Share of the distilled student's attention heads to cut out, the least important on training rows; 0 keeps all.
            student_prune_ffn: Share of its feed-forward neurons to cut out, chosen the same way; 0 keeps all.
            student_sparsity: Share of what is left of each of its encoder matrices that becomes zero, the smallest weights first; 0 leaves it dense.
            prune_epochs: Passes over the training rows in which a pruned student learns from the teacher again.
            batch_size: Rows per optimizer step and device.
            gradient_accumulation_steps: Batches summed into one optimizer step.
            max_length: Tokens after which a text is cut.
            warmup_ratio: Share of the steps over which the learning rate rises.
            weight_decay: AdamW's decoupled weight decay.
            evaluations_per_epoch: Evaluations on the validation split per epoch, each with a checkpoint.
            early_stopping_patience: Evaluations without improvement after which training stops; 0 never stops early.
            precision: Of training: auto (bf16 where GPU or CPU have it), fp32 or bf16.
            seed: Seed of everything random.
            checkpoint_dir: Where resumable checkpoints are kept: a path on a volume or an object-store URI; empty keeps none between runs.
            precisions: Precisions to package, comma-separated: fp32, and of fp16, int8 and int8-static those wanted.
            max_text_bytes: The endpoint refuses longer texts, in UTF-8 bytes.
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
            calibration_rows: Training rows on which int8-static observes the ranges of activations.
            policy: real-time (lowest p95 latency), memory (fewest bytes) or quality (best).
            min_retention: Least share of the teacher's quality that a choice by real-time or memory must keep.
            quality_metric: What quality means: accuracy, macro_f1 or mcc.
            bootstrap_samples: Resamples for the 95% intervals.
            latency_samples: Test texts answered one at a time to measure latency, in each of 3 rounds.
            throughput_rows: Test rows answered in batches of 32 to measure throughput, over all rounds.
            tracking_uri: MLflow's tracking URI; empty takes MLFLOW_TRACKING_URI.
            experiment: MLflow experiment.
            run_name: Name of the MLflow run; empty lets MLflow choose.
            deploy_target: none, local or kubernetes.
            serving_namespace: On Kubernetes, the namespace to serve in; empty takes the deployer's own.
            serving_values: On Kubernetes, Helm values for charts/triton, as a JSON object.
            canary_weight: On Kubernetes, percent of the requests that a new version gets first while it is judged; 0 replaces the old one at once.
            canary_minutes: How long a canary's metrics are watched.
            prometheus_url: Where a canary's metrics are asked for; empty judges it by its answers to test rows alone.
            rollout_timeout_minutes: On Kubernetes, how long a release may take to become ready before it is rolled back.
            promotion: When a new version replaces the champion: better (only if it is better by the policy, and significantly so) or always.
            significance: Level of the tests that compare a new version with the champion, such as 0.05.
            deploy_conflict: When another run is deploying the same model: wait for it to end, or yield (stay registered as challenger).
            skip_unchanged: Stop early, successfully, where the source has not changed since the champion was trained.
            grpc_port: The local server's gRPC port.
            http_port: The local server's HTTP port.
            metrics_port: The local server's metrics port.
            num_nodes: Machines that each training runs on; above 1, under Kubeflow Trainer.
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
        ending = step("Notify", notify, cached=False, pipeline_run=this_run)
        with dsl.ExitHandler(ending, name="Train, compare, deploy"):
            # Never cached: the source may have changed behind an unchanged name.
            inspected = step("Inspect source", inspect_source, cached=False, pipeline_run=this_run)
            found = inspected.outputs
            with dsl.If(found["Output"] == "yes", name="Source has changed"):
                dataset = step(
                    "Prepare data", prepare_data, fingerprint=found["fingerprint"], code_version=found["data_version"]
                ).outputs["dataset"]

                training = dict(code_version=found["train_version"], dataset=dataset)
                distillation = dict(
                    hard_weight=distill_hard_weight, soft_weight=distill_soft_weight, cosine_weight=distill_cosine_weight,
                    temperature=distill_temperature, word_dropout=distill_word_dropout,
                )  # fmt: skip
                teacher_model = step(
                    "Fine-tune teacher", finetune, name="teacher", checkpoint=teacher, epochs=teacher_epochs,
                    learning_rate=teacher_learning_rate, **training,
                ).outputs["model"]  # fmt: skip
                student_model = step(
                    "Distil student", distill, name="student", layers=distill_layers, epochs=student_epochs,
                    learning_rate=student_learning_rate, prune_heads=student_prune_heads, prune_ffn=student_prune_ffn,
                    sparsity=student_sparsity, teacher=teacher_model, **distillation, **training,
                ).outputs["model"]  # fmt: skip
                albert_model = step(
                    "Fine-tune ALBERT", finetune, name="albert", checkpoint=albert, epochs=albert_epochs,
                    learning_rate=albert_learning_rate, teacher=teacher_model, embedding_size=albert_embedding_size,
                    layers=albert_layers, **distillation, **training,
                ).outputs["model"]  # fmt: skip

                models = {"teacher": teacher_model, "student": student_model, "albert": albert_model}
                titles = {"teacher": "Package teacher", "student": "Package student", "albert": "Package ALBERT"}
                packages = {
                    f"{name}_packages": step(
                        titles[name], package, name=name, served_name=model_name, code_version=found["package_version"],
                        dataset=dataset, model=model,
                    ).outputs["packages"]
                    for name, model in models.items()
                }  # fmt: skip

                champion = dict(champion_version=found["champion_version"], code_version=found["evaluate_version"])
                champion_packages = step(
                    "Fetch champion", fetch_champion, champion_digest=found["champion_digest"], **champion
                ).outputs["packages"]

                def conclude(**looped: Any) -> None:
                    """From the evaluation to the deployment; what is `looped` is collected over the loop's turns."""

                    def collected(*names: str) -> dict[str, dsl.Collected]:
                        # Made for each step anew, since kfp changes them.
                        return {name: dsl.Collected(looped[name]) for name in names if name in looped}

                    evaluation = step(
                        "Evaluate and choose", evaluate, dataset=dataset, champion_packages=champion_packages,
                        **champion, **packages, **collected("extra_packages"),
                    ).outputs["evaluation"]  # fmt: skip
                    registered = step(
                        "Register", register, cached=False, run_digest=found["run_digest"], pipeline_run=this_run,
                        dataset=dataset, evaluation=evaluation, **packages,
                        **{f"{name}_model": model for name, model in models.items()},
                        **collected("extra_packages", "extra_models"),
                    )  # fmt: skip
                    step(
                        "Deploy", deploy, cached=False, version=registered.output, pipeline_run=this_run,
                        evaluation=evaluation,
                    )  # fmt: skip

                # A loop over nothing has no outputs to collect: kfp.local fails then, and so do releases of Kubeflow.
                # So what follows the loop is there twice, and a run takes one of the two ways.
                with dsl.If(found["extras"] == "no", name="Without extra candidates"):
                    conclude()
                with dsl.If(found["extras"] == "yes", name="With extra candidates"):
                    # On one machine one after the other, where kfp mixes up what tasks in threads log, too.
                    turns = dsl.ParallelFor(
                        found["candidates"], name="Each extra candidate", parallelism=None if cluster else 1
                    )
                    # The items are texts, since kfp hands structures to the wrong groups (kubeflow/pipelines#13273).
                    with turns as candidate:
                        extra_model = step(
                            "Fine-tune extra candidate", finetune, name="", checkpoint=candidate, epochs=extra_epochs,
                            learning_rate=extra_learning_rate, **training,
                        ).outputs["model"]  # fmt: skip
                        extra_packages = step(
                            "Package extra candidate", package, name="", served_name=model_name,
                            code_version=found["package_version"], dataset=dataset, model=extra_model,
                        ).outputs["packages"]  # fmt: skip
                    conclude(extra_models=extra_model, extra_packages=extra_packages)

        if cluster is not None:
            resources = dict(
                cpu=train_cpu, memory=train_memory, gpus=found["gpus"], gpu_type=gpu_type, node_selector=node_selector,
                tolerations=tolerations,
            )  # fmt: skip
            cluster.apply(wiring.tasks, resources)

    pipeline = dsl.pipeline(
        name="stillhouse-train-and-deploy",
        display_name="Train, distil, compare and deploy",
        description=description(train_and_deploy),
    )
    return pipeline(train_and_deploy)


train_and_deploy = define()
"""The pipeline as it runs on one machine."""
