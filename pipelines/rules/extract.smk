# Stage one. A job is a shard; the manifest is the tracked file, and the shard beside it resumes by itself.


rule render:
    output:
        "work/{dataset}/rendered.json",
    log:
        "work/{dataset}/logs/render.log",
    threads: 16
    params:
        clips=clips_token,
    shell:
        "framepool render {wildcards.dataset} --threads {threads} > {log:q} 2>&1"


# Jobs read the annotation files themselves and come to the same order as this list keeps, so a shard does not wait for
# it: Snakemake overlooks what else changed for a job below one that runs. Nor are the files inputs here, for the token
# follows what they say, and Snakemake refuses whatever is made of a file whose time lies in the future.
rule index:
    input:
        clips_of,
    output:
        update("work/{dataset}/videos.csv"),
    log:
        "work/{dataset}/logs/index.log",
    priority: 1
    params:
        list=list_token,
    shell:
        "framepool index {wildcards.dataset} > {log:q} 2>&1"


EXTRACT = (
    "framepool extract {wildcards.dataset} {params.arguments}"
    " --shard $((10#{wildcards.shard})) --threads {threads} > {log:q} 2>&1"
)


rule extract:
    input:
        clips=clips_of,
        weights=weights_of,
        sources=sources_of,
    output:
        "work/{dataset}/features/{store}/{shard}.json",
    log:
        "work/{dataset}/logs/{store}/{shard}.log",
    benchmark:
        "work/{dataset}/benchmarks/{store}/{shard}.tsv"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        gpu=device_count,
    params:
        videos=shard_token,
        arguments=made,
    shell:
        EXTRACT


# Shards that lack several stores get them from one pass over their videos, and rows that only feed others are removed
# when nothing reads them any more. What is there already is no output of such a job.
shared_rules = []
for here in mentioned(sys.argv[1:]):
    for shared in passes(here):

        rule:
            name:
                shared.rule
            input:
                clips=clips_of,
                weights=weights_for(shared.stores),
                sources=sources_for(shared.stores),
            output:
                [temp(path) for path in shared.removed],
                [temp(directory(path)) for path in shared.removed_folders],
                shared.kept,
            log:
                shared.log,
            benchmark:
                shared.benchmark
            wildcard_constraints:
                dataset=here.dataset,
                shard=shared.shards,
            threads: 4
            resources:
                mem_mb=lambda wildcards, attempt: 4000 * attempt,
                gpu=shared.gpus,
            params:
                videos=shard_token,
                arguments=made,
            shell:
                EXTRACT

        shared_rules.append(shared.rule)


if shared_rules:
    workflow.ruleorder(*shared_rules, "extract")


rule gather:
    input:
        manifests_of,
    output:
        "work/{dataset}/features/{store}/store.json",
    log:
        "work/{dataset}/logs/{store}/gather.log",
    params:
        arguments=store_arguments,
        manifests=manifests_of,
    shell:
        "framepool gather {wildcards.dataset} {params.arguments} > {log:q} 2>&1"
