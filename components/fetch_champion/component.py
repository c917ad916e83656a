"""Component `fetch_champion`."""

from kfp import dsl

from stillhouse.components.images import OPS_IMAGE


@dsl.component(base_image=OPS_IMAGE, install_kfp_package=False)
def fetch_champion(
    model_name: str,
    tracking_uri: str,
    champion_version: str,
    champion_digest: str,
    code_version: str,
    packages: dsl.Output[dsl.Model],
):
    """Fetch the package that is deployed, to be measured beside the new ones; an empty artifact where there is none.

    Args:
        model_name: Name of the registered model.
        tracking_uri: MLflow's tracking URI; empty takes `MLFLOW_TRACKING_URI`.
        champion_version: The champion's registered version; empty where there is none to compare with.
        champion_digest: sha256 of its package's manifest.
        code_version: Of the code that measures it, so that changed code runs again.
        packages: The champion's package.
    """
    from pathlib import Path

    from stillhouse.progress import step
    from stillhouse.registry import MlflowRegistry
    from stillhouse.registry import fetch_champion as fetch

    with step("fetch-champion") as watch:
        fetch(
            MlflowRegistry(tracking_uri), model_name, version=champion_version, digest=champion_digest,
            output_dir=Path(packages.path), step=watch,
        )  # fmt: skip
