"""Component `prepare_data`."""

from kfp import dsl

from stillhouse.components.images import TRAIN_IMAGE


@dsl.component(base_image=TRAIN_IMAGE, install_kfp_package=False)
def prepare_data(
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
    fingerprint: str,
    code_version: str,
    dataset: dsl.Output[dsl.Dataset],
):
    """Read the source into train, validation and test splits as Parquet.

    Args:
        task: Kind of prediction.
        data: Source of the training rows, and of the other splits where they are not given.
        validation_data: Source of the validation rows; empty makes them from `data`.
        test_data: Source of the test rows; empty makes them from `data`.
        text_column: Column that holds the text.
        label_column: Column that holds the label.
        max_train_rows: Seeded sample of so many training rows; 0 takes all.
        max_validation_rows: The same for validation.
        max_test_rows: The same for test.
        validation_fraction: Share of `data` that becomes the validation split, where none is given.
        test_fraction: Share of `data` that becomes the test split, where none is given.
        seed: Seed of splits and samples.
        fingerprint: Of the source's present content, so that a changed source is read again.
        code_version: Of the code behind this step, so that changed code runs again.
        dataset: The splits, with `dataset.json`.
    """
    parameters = dict(locals())

    from pathlib import Path

    from stillhouse.data.prepare import prepare_dataset
    from stillhouse.inspection.inspect import data_config
    from stillhouse.progress import step

    with step("prepare-data") as watch:
        manifest = prepare_dataset(data_config(parameters), Path(dataset.path), fingerprint=fingerprint, step=watch)
        dataset.metadata.update({f"{name}_rows": split.rows for name, split in manifest.splits.items()})
        dataset.metadata["duplicates_removed"] = manifest.duplicates_removed
