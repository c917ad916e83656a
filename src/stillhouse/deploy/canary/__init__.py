"""Whether a canary is as good as what it stands beside, judged by the live metrics of both."""

from stillhouse.deploy.canary.judgement import CanaryWatch, Verdict
from stillhouse.deploy.canary.watch import watch_canary

__all__ = ["CanaryWatch", "Verdict", "watch_canary"]
