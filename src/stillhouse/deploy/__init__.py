"""Deploying: a registered version becomes what answers at the endpoint, or everything stays as it was."""

from stillhouse.deploy.canary import CanaryWatch, Verdict, watch_canary
from stillhouse.deploy.config import DeployConfig
from stillhouse.deploy.local import Endpoint, Registry, deploy_local, deploy_release
from stillhouse.deploy.rollout import Rollout, roll_out
from stillhouse.deploy.shelf import fetch_release

__all__ = [
    "CanaryWatch",
    "DeployConfig",
    "Endpoint",
    "Registry",
    "Rollout",
    "Verdict",
    "deploy_local",
    "deploy_release",
    "fetch_release",
    "roll_out",
    "watch_canary",
]
