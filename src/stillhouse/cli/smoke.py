"""`stillhouse smoke`: does an endpoint give the answers that its package gives?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse.cli.options import AsJson, TlsAuthority, TlsCertificate, TlsKey, WithTls, tls_settings

__all__ = ["smoke"]

_TEXT = "The quick brown fox jumps over the lazy dog."
_LONGEST = 10.0  # seconds that one request may take


def smoke(
    url: Annotated[str, typer.Option(metavar="HOST:PORT", help="gRPC endpoint.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="Name of the served model.")],
    version: Annotated[str, typer.Option(metavar="N", help="Registered version that must answer.")],
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Known answers: a JSON list of {"text", "label", "probabilities"}; the last two may be left out. '
            "Without it, one text is asked, and only the version is checked.",
        ),
    ] = None,
    tls: WithTls = False,
    tls_ca: TlsAuthority = None,
    tls_cert: TlsCertificate = None,
    tls_key: TlsKey = None,
    timeout: Annotated[
        float, typer.Option(metavar="S", help="Seconds to wait for a server, or a release, that is just coming up.")
    ] = 60.0,
    min_agreement: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the answers that must agree, 0 to 1.")
    ] = 1.0,
    tolerance: Annotated[
        float, typer.Option(metavar="P", help="Largest difference of a probability that still agrees.")
    ] = 0.001,
    as_json: AsJson = False,
) -> None:
    """Ask an endpoint questions whose answers are known, over gRPC.

    Prints the share of answers that agree, and how fast they came. Fails where too few do, where a question is not
    answered at all, and where another version answers.
    """
    from stillhouse.cli.extras import require
    from stillhouse.cli.output import print_json, stdout
    from stillhouse.errors import InputError, Problem

    require("tritonclient", "client", "`stillhouse smoke`")
    from stillhouse.deploy.config import version_problems
    from stillhouse.deploy.smoke import KnownAnswer, ask_known_answers, read_answers

    problems = version_problems("--version", version or "''")
    for name, value, highest in (("--timeout", timeout, 3600.0), ("--min-agreement", min_agreement, 1.0)):
        if not 0 <= value <= highest:
            problems.append(Problem(name, f"{value:g} will not do.", f"Give 0 to {highest:g}."))
    if problems:
        raise InputError(problems)
    secured = tls_settings(tls, tls_ca, tls_cert, tls_key)
    known = read_answers(answers) if answers else [KnownAnswer(_TEXT)]
    report = ask_known_answers(
        url, model, version, known, timeout=_LONGEST, patience=timeout, tls=secured, tolerance=tolerance
    )
    p50, p95 = report.latency(0.5), report.latency(0.95)
    if as_json:
        body: dict[str, Any] = {
            "url": url,
            "model": model,
            "version": version,
            "rows": len(report.rows),
            "agreement": report.agreement,
            "p50_ms": None if math.isnan(p50) else p50,
            "p95_ms": None if math.isnan(p95) else p95,
            "faults": [{"text": row.answer.text, "fault": row.fault} for row in report.rows if row.fault],
        }
        print_json(body)
    elif not math.isnan(p50):
        agreeing = sum(not row.fault for row in report.rows)
        stdout().print(
            f"{model} version {version} at {url}: {agreeing} of {len(report.rows)} answers agree "
            f"({report.agreement:.1%}), p50 {p50:.1f} ms, p95 {p95:.1f} ms",
            markup=False,
            soft_wrap=True,
        )
    report.check(min_agreement)
