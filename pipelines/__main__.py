"""`python -m stillhouse.pipelines`: what the `stillhouse` command starts, since the library itself knows no kfp.

run      run a pipeline on this machine
compile  print a pipeline, compiled for a cluster
submit, watch, schedule, publish  see `stillhouse.pipelines.remote.commands`
"""

import argparse
import logging
import sys
from pathlib import Path

from stillhouse.cli.output import print_problems
from stillhouse.errors import InputError, StillhouseError
from stillhouse.pipelines.catalogue import TRAIN_AND_DEPLOY, find_pipeline
from stillhouse.pipelines.compiling import cluster_defaults, compiled_yaml
from stillhouse.pipelines.local import end_with_parent, fail, local_defaults, run_locally
from stillhouse.pipelines.parameters import arguments_for
from stillhouse.pipelines.remote.commands import COMMANDS, add_commands, run_command
from stillhouse.pipelines.remote.runs import submission_problems


def main() -> int:
    """Run one command; the exit code is 0, 2 for bad input, or 1."""
    parser = argparse.ArgumentParser(prog="python -m stillhouse.pipelines")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("--workflow", default=TRAIN_AND_DEPLOY.name)
    run.add_argument("--preset", default="demo")
    run.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE")
    run.add_argument("--run-dir", type=Path, required=True)
    compile_ = commands.add_parser("compile")
    compile_.add_argument("--workflow", default=TRAIN_AND_DEPLOY.name)
    compile_.add_argument("--cluster", default="gpu")
    compile_.add_argument("--preset", default="")
    compile_.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE")
    add_commands(commands)
    options = parser.parse_args()
    if options.command == "compile":
        return _compile(options.cluster, options.preset, options.settings, options.workflow)
    end_with_parent()
    if options.command in COMMANDS:
        return run_command(options)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        pipeline = find_pipeline(options.workflow)
        arguments, problems = arguments_for(options.preset, options.settings, pipeline=pipeline)
        if problems:
            # The run will not start, so check the rest here, to report everything at once.
            try:
                pipeline.inspect(local_defaults({pipeline.source: "", **arguments}, pipeline))
            except InputError as error:
                problems += [p for p in error.problems if p.where not in {q.where for q in problems}]
            raise InputError(problems)
        run_locally(arguments, pipeline)
    except StillhouseError as error:
        fail(error)
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _compile(cluster_name: str, preset: str, settings: list[str], workflow: str = TRAIN_AND_DEPLOY.name) -> int:
    """Print a pipeline, compiled for a cluster; without a preset, it takes the cluster's."""
    try:
        pipeline = find_pipeline(workflow)
    except InputError as error:
        print_problems(error.problems)
        return error.exit_code
    cluster, _, problems = cluster_defaults(cluster_name, pipeline)
    defaults, wrong = arguments_for(
        preset or pipeline.preset_on(cluster), settings, cluster=cluster.defaults(), complete=False, pipeline=pipeline
    )
    problems += wrong
    known = {problem.where for problem in problems}
    # These two may be left for each run to give.
    later = {name for name in (pipeline.source, "checkpoint_dir") if not defaults.get(name)}
    problems += [p for p in submission_problems(defaults, pipeline) if p.where not in known | later]
    if problems:
        print_problems(problems)
        return InputError.exit_code
    sys.stdout.write(compiled_yaml(cluster, defaults, pipeline))
    return 0


if __name__ == "__main__":
    sys.exit(main())
