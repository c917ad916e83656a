"""Writes the parts of the documentation that the code already says.

    docs/cli.md                   from `--help` of every command
    docs/parameters.md            from the pipelines' signatures and docstrings, and the presets
    components/*/README.md        from each component's signature and docstring
    pipelines/compiled/*.yaml     the pipelines, compiled for each cluster that comes with the release
    charts/*/README.md            what follows its line `## Values`, from the comments in values.yaml

Usage: python docs/generate.py [--check]

With --check nothing is written, and the exit code is 1 if a file is not up to date.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 88
NOTE = "<!-- Written by docs/generate.py; `make docs` writes it again. -->\n"


def command_line() -> str:
    """The CLI reference: each command's own help, in the order of the help."""
    # Fixed before typer is imported: the help must not depend on who asks, or from where.
    os.environ.update(COLUMNS=str(WIDTH), TERM="dumb", NO_COLOR="1")
    import typer
    from typer.testing import CliRunner

    from stillhouse.cli.main import app

    def help_of(*path: str) -> str:
        arguments = [*path, "--help"]
        result = CliRunner().invoke(app, arguments, prog_name="stillhouse", terminal_width=WIDTH, color=False)
        assert result.exit_code == 0, (path, result.output)
        return "\n".join(line.rstrip() for line in result.output.strip().splitlines())

    def walk(group: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, command in getattr(group, "commands", {}).items():
            yield from walk(command, (*path, name))

    parts = [NOTE, "# The command line\n"]
    parts.append(
        "Results go to standard output, progress and errors to standard error. Exit codes: 0; 2 when what was given "
        "is at fault, with every problem listed; 128 + n when signal n stopped a run; 1 for any other failure.\n"
    )
    for path in walk(typer.main.get_command(app), ()):
        title = " ".join(("stillhouse", *path))
        parts.append(f"{'##' if len(path) < 2 else '###'} {title}\n\n```text\n{help_of(*path)}\n```\n")
    return "\n".join(parts)


def cell(value: Any) -> str:
    """Text of a table's cell."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def code(value: Any) -> str:
    """A value as code; nothing for an empty one."""
    return f"`{cell(value)}`" if value not in ("", None) else ""


def parameter_reference() -> str:
    """Every parameter of each pipeline, and what each preset sets."""
    from stillhouse.pipelines.catalogue import PRETRAIN, TRAIN_AND_DEPLOY

    lines = [
        NOTE,
        "# Pipeline parameters\n",
        "The parameters of a pipeline are the configuration, the same everywhere: the form in the Kubeflow UI, the "
        "keys of a preset, and `--set name=value`. A preset's values go before the defaults below, and `--set` before "
        "both.\n",
        "## The main pipeline\n",
        "`stillhouse run`; its presets are in `pipelines/presets/`.\n",
        *_parameter_tables(TRAIN_AND_DEPLOY),
        "## The pretraining pipeline\n",
        "`stillhouse pretrain`; its presets are in `pipelines/presets/pretrain/`. [Pretraining](pretraining.md) says "
        "more.\n",
        *_parameter_tables(PRETRAIN),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _parameter_tables(pipeline: Any) -> Iterator[str]:
    from stillhouse.pipelines.parameters import parameters, preset_names, read_preset

    known = parameters(pipeline)
    yield from ("| Parameter | Type | Default | Meaning |", "|---|---|---|---|")
    for p in known.values():
        default = "*required*" if p.default is None else code(p.default)
        yield f"| `{p.name}` | {p.type.__name__} | {default} | {cell(p.description)} |"
    yield ""
    for name in preset_names(pipeline):
        text = (ROOT / "pipelines" / pipeline.preset_folder / f"{name}.yaml").read_text(encoding="utf-8")
        intro = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        yield from (f"### Preset {name}\n", f"{intro}\n", "| Parameter | Value | Default |", "|---|---|---|")
        for key, value in read_preset(name, pipeline).items():
            yield f"| `{key}` | {code(value)} | {code(known[key].default)} |"
        yield ""


def component_readme(name: str) -> str:
    """One component's page, from the specification that kfp makes of its signature and docstring."""
    import docstring_parser
    from kfp.dsl import python_component

    from stillhouse.pipelines.catalogue import PIPELINES
    from stillhouse.pipelines.parameters import parameters

    module = importlib.import_module(f"stillhouse.components.{name}.component")
    (component,) = (
        value
        for value in vars(module).values()
        if isinstance(value, python_component.PythonComponent) and value.python_func.__module__ == module.__name__
    )
    definition = component.component_spec
    proto = component.pipeline_spec.root
    docstring = docstring_parser.parse(component.python_func.__doc__ or "")
    # kfp leaves the outputs undescribed.
    described = {entry.arg_name: entry.description for entry in docstring.params}
    # What is passed on unchanged has the description of the first pipeline that has this step.
    key = "comp-" + name.replace("_", "-")
    owner = next(one for one in PIPELINES.values() if key in one.component.pipeline_spec.components)
    described = {entry.name: entry.description for entry in parameters(owner).values()} | described
    lines = [NOTE, f"# {name}\n"]
    lines += [f"{text}\n" for text in (docstring.short_description, docstring.long_description) if text]

    def section(title: str, given: Any, declared: Any) -> None:
        rows = []
        for entry, spec in (given or {}).items():
            artifact = entry in declared.artifacts
            description = described.get(entry) or ""
            kind = _kind(spec.type)
            note = f" Default: `{spec.default!r}`." if getattr(spec, "optional", False) and not artifact else ""
            rows.append(f"| `{entry}` | {'artifact, ' if artifact else ''}{kind} | {cell(description)}{note} |")
        if rows:
            lines.extend([f"## {title}\n", "| Name | Type | Meaning |", "|---|---|---|", *rows, ""])

    section("Inputs", definition.inputs, proto.input_definitions)
    section("Outputs", definition.outputs, proto.output_definitions)
    lines.append(f"Runs in `{definition.implementation.container.image}`.")
    return "\n".join(lines) + "\n"


def _kind(name: str) -> str:
    """A type's name as people write it: `system.Dataset@0.0.1` is Dataset."""
    return {"String": "str", "Integer": "int", "Float": "float", "Boolean": "bool"}.get(
        name, name.removeprefix("system.").split("@")[0]
    )


def compiled(cluster_name: str, pipeline: Any) -> str:
    """The pipeline as `stillhouse compile --cluster` prints it."""
    from stillhouse.pipelines.compiling import cluster_defaults, compiled_yaml

    cluster, defaults, problems = cluster_defaults(cluster_name, pipeline)
    assert not problems, problems
    return compiled_yaml(cluster, defaults, pipeline)


VALUES = "## Values\n"


def chart_readme(folder: Path) -> str:
    """A chart's page: what a person wrote up to the heading of the values, and the values."""
    written, heading, _ = (folder / "README.md").read_text(encoding="utf-8").partition(VALUES)
    assert heading, f"{folder.name}/README.md has no line {VALUES!r}"
    lines = [
        VALUES,
        "<!-- From here on written by docs/generate.py, from values.yaml; `make docs` writes it again. -->\n",
    ]
    for section, rows in chart_values(folder / "values.yaml"):
        lines += [*([f"{section}\n"] if section else []), "| Key | Default | Meaning |", "|---|---|---|"]
        lines += [f"| `{key}` | {code(default)} | {cell(meaning)} |" for key, default, meaning in rows]
        lines.append("")
    return written + "\n".join(lines).rstrip() + "\n"


def chart_values(path: Path) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """A chart's values by section: what stands above a top-level map; key, default and meaning of what it holds.

    The comment above a key is its meaning. A map whose own keys have no comment is one row. Top-level keys that are no
    maps are rows of a section without a text.

    Raises:
        ValueError: a key has no comment, with all such keys.
    """
    import json

    import yaml

    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    comments = _comments(text)
    bare: list[str] = []

    def rows(value: Any, key: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
        inner = [(*key, name) for name in value] if isinstance(value, dict) else []
        if any(path[: len(key)] == key and len(path) > len(key) for path in comments):
            for path in inner:
                yield from rows(value[path[-1]], path)
        elif comment := comments.get(key):
            yield ".".join(key), json.dumps(value, ensure_ascii=False), comment
        else:
            bare.append(".".join(key))

    sections: list[tuple[str, list[tuple[str, str, str]]]] = []
    for name, value in values.items():
        found = list(rows(value, (name,)))
        if found and found[0][0] == name:
            if not sections or sections[-1][0]:
                sections.append(("", []))
            sections[-1][1].extend(found)
        else:
            sections.append((f"**`{name}`** · {comments.get((name,), '')}".removesuffix(" · "), found))
    if bare:
        raise ValueError(f"{path}: no comment says what these mean: {', '.join(bare)}")
    return sections


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """Comment above each key of a YAML file in block style, by the path of the key."""
    found: dict[tuple[str, ...], str] = {}
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        body = line.strip()
        if body.startswith("#"):
            comment.append(body.lstrip("# "))
            continue
        if match := re.match(r"( *)([A-Za-z_][A-Za-z0-9_.-]*):(?: |$)", line):
            indent = len(match[1])
            path = [*(entry for entry in path if entry[0] < indent), (indent, match[2])]
            if comment:
                found[tuple(name for _, name in path)] = " ".join(comment)
        comment = []
    return found


def documents() -> dict[Path, str]:
    """All generated files by path."""
    from stillhouse.pipelines.catalogue import PIPELINES
    from stillhouse.pipelines.compiling import cluster_names

    found = {ROOT / "docs" / "cli.md": command_line(), ROOT / "docs" / "parameters.md": parameter_reference()}
    for path in sorted((ROOT / "components").glob("*/component.py")):
        found[path.with_name("README.md")] = component_readme(path.parent.name)
    for path in sorted((ROOT / "charts").glob("*/values.yaml")):
        found[path.with_name("README.md")] = chart_readme(path.parent)
    for name in cluster_names():
        for pipeline in PIPELINES.values():
            path = ROOT / "pipelines" / "compiled" / f"{pipeline.identifier}-{name}.yaml"
            found[path] = compiled(name, pipeline)
    return found


def main() -> int:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description="Write the generated documentation.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not up to date")
    check = parser.parse_args().check
    stale = 0
    for path, text in documents().items():
        kept = path.read_text(encoding="utf-8") if path.is_file() else ""
        if kept == text:
            continue
        name = str(path.relative_to(ROOT))
        if not check:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {name}")
            continue
        stale += 1
        diff = difflib.unified_diff(kept.splitlines(), text.splitlines(), name, f"{name}, generated now", lineterm="")
        print(*list(diff)[:40], f"{name} is not up to date: make docs", sep="\n", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
