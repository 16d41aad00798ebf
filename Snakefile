# Which dataset, which recipes, in what order:
#
#   videos -> index -> shards -> extract -> stores -> train -> runs -> assemble -> results/<dataset>
#
# snakemake --cores 16 results/kinetics
import os
import shlex
import sys
from snakemake.utils import min_version
from features.errors import FramepoolError
from pipelines import plan, running
from pipelines.groups import groups
from pipelines.passes import mentioned, passes

min_version("9.1.0")

# Rules run the interpreter that runs Snakemake, in the place of their shell, so that a job ends with its workflow.
shell.prefix(
    f'set -euo pipefail; framepool() {{{{ exec {shlex.quote(sys.executable)} -m pipelines --follow-parent "$@"; }}}}; '
)

# A bad config or a missing annotation file is one line here, before anything is planned.
try:
    plan.requested(sys.argv[1:])
    if workflow.is_main_process:
        for here in mentioned(sys.argv[1:]):
            if here.config.disk_gb:
                from pipelines.sizes import check_budget

                check_budget(here)
except FramepoolError as error:
    sys.exit(f"framepool: {error}")
if workflow.is_main_process:
    announced = running.announce()


wildcard_constraints:
    dataset=r"[a-z0-9_-]+",
    store=r"[a-z0-9_]+-[0-9a-f]{8}",
    run=r"[a-z0-9_]+-split[^/]+-[0-9a-f]{8}",
    shard=r"\d{5}",


include: "pipelines/rules/common.smk"
include: "pipelines/rules/extract.smk"
include: "pipelines/rules/heads.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        "results/demo",
