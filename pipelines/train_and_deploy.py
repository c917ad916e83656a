"""The main pipeline: labelled text in, the best of three models behind Triton out.

    inspect_source ── prepare_data ── finetune (teacher) ─┬─ distill (student) ── package ─┐
                                          │               └─ finetune (ALBERT) ── package ─┼─ evaluate ── register ── deploy
                                          └─────────────────────────────────────  package ─┘    (exit handler: notify)

The ALBERT comes after the teacher, since with `albert=teacher://` it is made from it; it trains beside the student.
"""

from kfp import dsl

from stillhouse.components.deploy.component import deploy
from stillhouse.components.distill.component import distill
from stillhouse.components.evaluate.component import evaluate
from stillhouse.components.finetune.component import finetune
from stillhouse.components.inspect_source.component import inspect_source
from stillhouse.components.notify.component import notify
from stillhouse.components.package.component import package
from stillhouse.components.prepare_data.component import prepare_data
from stillhouse.components.register.component import register


@dsl.pipeline(name="stillhouse-train-and-deploy", display_name="Train, distil, compare and deploy")
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
    student_epochs: float = 3.0,
    student_learning_rate: float = 5e-5,
    albert: str = "hub://albert/albert-base-v2",
    albert_epochs: float = 3.0,
    albert_learning_rate: float = 2e-5,
    albert_embedding_size: int = 128,
    albert_layers: int = 0,
    distill_layers: str = "",
    distill_hard_weight: float = 0.2,
    distill_soft_weight: float = 0.8,
    distill_cosine_weight: float = 1.0,
    distill_temperature: float = 2.0,
    distill_word_dropout: float = 0.15,
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
    fp32_tolerance: float = 0.001,
    int8_tolerance: float = 0.05,
    policy: str = "real-time",
    min_retention: float = 0.97,
    quality_metric: str = "accuracy",
    bootstrap_samples: int = 1000,
    tracking_uri: str = "",
    experiment: str = "stillhouse",
    run_name: str = "",
    deploy_target: str = "none",
    grpc_port: int = 8001,
    http_port: int = 8000,
    metrics_port: int = 8002,
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
        teacher: BERT checkpoint to fine-tune: a folder, hub://OWNER/NAME[@REVISION], minilm://, or scratch://bert?FIELD=VALUE&….
        teacher_epochs: Passes over the training rows for the teacher.
        teacher_learning_rate: The teacher's peak learning rate.
        student_epochs: Passes over the training rows for the student.
        student_learning_rate: The student's peak learning rate.
        albert: ALBERT checkpoint to fine-tune, in the same forms, or teacher:// to make one from the teacher.
        albert_epochs: Passes over the training rows for the ALBERT.
        albert_learning_rate: The ALBERT's peak learning rate.
        albert_embedding_size: Size of the factorised embeddings, where the ALBERT is made from the teacher.
        albert_layers: How often such an ALBERT applies its shared block; 0 takes the teacher's number of layers.
        distill_layers: Layers of the teacher that the student copies, counted from 1, such as 2,4,6; empty takes every second one.
        distill_hard_weight: Weight of the labels' cross-entropy in the distillation loss.
        distill_soft_weight: Weight of the divergence from the teacher's softened probabilities.
        distill_cosine_weight: Weight of one minus the cosine between matched hidden states.
        distill_temperature: Divisor of the logits before the softmax.
        distill_word_dropout: Share of the tokens hidden from teacher and student alike, drawn anew at each step.
        batch_size: Rows per optimizer step and device.
        gradient_accumulation_steps: Batches summed into one optimizer step.
        max_length: Tokens after which a text is cut.
        warmup_ratio: Share of the steps over which the learning rate rises.
        weight_decay: AdamW's decoupled weight decay.
        evaluations_per_epoch: Evaluations on the validation split per epoch, each with a checkpoint.
        early_stopping_patience: Evaluations without improvement after which training stops; 0 never stops early.
        precision: Of training: auto (bf16 on a GPU that has it), fp32 or bf16.
        seed: Seed of everything random.
        checkpoint_dir: Where resumable checkpoints are kept: a path on a volume or an object-store URI; empty keeps none between runs.
        precisions: Precisions to package: fp32, or fp32,int8.
        max_text_bytes: The endpoint refuses longer texts, in UTF-8 bytes.
        max_batch_size: Largest number of texts in one request.
        fp32_tolerance: Largest absolute difference of an FP32 probability from PyTorch's.
        int8_tolerance: Largest mean absolute difference of INT8 probabilities from PyTorch's.
        policy: real-time (lowest p95 latency), memory (fewest bytes) or quality (best).
        min_retention: Least share of the teacher's quality that a choice by real-time or memory must keep.
        quality_metric: What quality means: accuracy, macro_f1 or mcc.
        bootstrap_samples: Resamples for the 95% intervals.
        tracking_uri: MLflow's tracking URI; empty takes MLFLOW_TRACKING_URI.
        experiment: MLflow experiment.
        run_name: Name of the MLflow run; empty lets MLflow choose.
        deploy_target: none, local or kubernetes.
        grpc_port: The local server's gRPC port.
        http_port: The local server's HTTP port.
        metrics_port: The local server's metrics port.
    """
    ending = notify(model_name=model_name, data=data)
    ending.set_display_name("Notify").set_caching_options(False)

    with dsl.ExitHandler(ending, name="Train, compare, deploy"):
        inspected = inspect_source(
            task=task, data=data, validation_data=validation_data, test_data=test_data, text_column=text_column,
            label_column=label_column, max_train_rows=max_train_rows, max_validation_rows=max_validation_rows,
            max_test_rows=max_test_rows, validation_fraction=validation_fraction, test_fraction=test_fraction,
            seed=seed, teacher=teacher, teacher_epochs=teacher_epochs, teacher_learning_rate=teacher_learning_rate,
            albert=albert, albert_epochs=albert_epochs, albert_learning_rate=albert_learning_rate,
            albert_embedding_size=albert_embedding_size, albert_layers=albert_layers, student_epochs=student_epochs,
            student_learning_rate=student_learning_rate, distill_layers=distill_layers,
            distill_hard_weight=distill_hard_weight, distill_soft_weight=distill_soft_weight,
            distill_cosine_weight=distill_cosine_weight, distill_temperature=distill_temperature, distill_word_dropout=distill_word_dropout,
            batch_size=batch_size, gradient_accumulation_steps=gradient_accumulation_steps, max_length=max_length,
            warmup_ratio=warmup_ratio, weight_decay=weight_decay, evaluations_per_epoch=evaluations_per_epoch,
            early_stopping_patience=early_stopping_patience, precision=precision, precisions=precisions,
            max_text_bytes=max_text_bytes, max_batch_size=max_batch_size, fp32_tolerance=fp32_tolerance,
            int8_tolerance=int8_tolerance, policy=policy, min_retention=min_retention, quality_metric=quality_metric,
            bootstrap_samples=bootstrap_samples, model_name=model_name, tracking_uri=tracking_uri,
            deploy_target=deploy_target, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port,
        )  # fmt: skip
        # Never cached: the source may have changed behind an unchanged name.
        inspected.set_display_name("Inspect source").set_caching_options(False)

        dataset = prepare_data(
            task=task, data=data, validation_data=validation_data, test_data=test_data, text_column=text_column,
            label_column=label_column, max_train_rows=max_train_rows, max_validation_rows=max_validation_rows,
            max_test_rows=max_test_rows, validation_fraction=validation_fraction, test_fraction=test_fraction,
            seed=seed, fingerprint=inspected.outputs["fingerprint"], code_version=inspected.outputs["data_version"],
        ).set_display_name("Prepare data").outputs["dataset"]  # fmt: skip

        training = dict(
            batch_size=batch_size, gradient_accumulation_steps=gradient_accumulation_steps, max_length=max_length,
            warmup_ratio=warmup_ratio, weight_decay=weight_decay, evaluations_per_epoch=evaluations_per_epoch,
            early_stopping_patience=early_stopping_patience, quality_metric=quality_metric, precision=precision,
            seed=seed, checkpoint_dir=checkpoint_dir, code_version=inspected.outputs["train_version"], dataset=dataset,
        )  # fmt: skip
        distillation = dict(
            hard_weight=distill_hard_weight, soft_weight=distill_soft_weight, cosine_weight=distill_cosine_weight,
            temperature=distill_temperature, word_dropout=distill_word_dropout,
        )  # fmt: skip
        teacher_model = finetune(
            name="teacher", checkpoint=teacher, epochs=teacher_epochs, learning_rate=teacher_learning_rate, **training
        ).set_display_name("Fine-tune teacher").outputs["model"]  # fmt: skip
        student_model = distill(
            name="student", layers=distill_layers, epochs=student_epochs, learning_rate=student_learning_rate,
            teacher=teacher_model, **distillation, **training,
        ).set_display_name("Distil student").outputs["model"]  # fmt: skip
        albert_model = finetune(
            name="albert", checkpoint=albert, epochs=albert_epochs, learning_rate=albert_learning_rate,
            teacher=teacher_model, embedding_size=albert_embedding_size, layers=albert_layers, **distillation, **training,
        ).set_display_name("Fine-tune ALBERT").outputs["model"]  # fmt: skip

        models = {"teacher": teacher_model, "student": student_model, "albert": albert_model}
        titles = {"teacher": "Package teacher", "student": "Package student", "albert": "Package ALBERT"}
        packages = {
            name: package(
                name=name, served_name=model_name, precisions=precisions, max_text_bytes=max_text_bytes,
                max_batch_size=max_batch_size, fp32_tolerance=fp32_tolerance, int8_tolerance=int8_tolerance,
                code_version=inspected.outputs["package_version"], dataset=dataset, model=model,
            ).set_display_name(titles[name]).outputs["packages"]
            for name, model in models.items()
        }  # fmt: skip
        packaged = {f"{name}_packages": artifact for name, artifact in packages.items()}

        evaluation = evaluate(
            policy=policy, min_retention=min_retention, quality_metric=quality_metric,
            bootstrap_samples=bootstrap_samples, seed=seed, code_version=inspected.outputs["evaluate_version"],
            dataset=dataset, **packaged,
        ).set_display_name("Evaluate and choose").outputs["evaluation"]  # fmt: skip

        registered = register(
            model_name=model_name, tracking_uri=tracking_uri, experiment=experiment, run_name=run_name,
            dataset=dataset, **{f"{name}_model": model for name, model in models.items()}, **packaged,
            evaluation=evaluation,
        ).set_display_name("Register")  # fmt: skip
        registered.set_caching_options(False)

        released = deploy(
            model_name=model_name, version=registered.output, tracking_uri=tracking_uri, deploy_target=deploy_target,
            grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port, evaluation=evaluation,
        ).set_display_name("Deploy")  # fmt: skip
        released.set_caching_options(False)
