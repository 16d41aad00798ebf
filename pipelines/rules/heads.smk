# Stage two. A job is a head on a split with all its seeds, or all heads of a split that are missing.


rule train:
    input:
        stores_of,
    output:
        "work/{dataset}/runs/{run}/trained.json",
    log:
        "work/{dataset}/logs/{run}.log",
    benchmark:
        "work/{dataset}/benchmarks/{run}.tsv"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        gpu=TRAINING_GPUS,
    params:
        arguments=trained,
        videos=videos_of,
        tested=tested_of,
    shell:
        "framepool train {wildcards.dataset} {params.arguments}" " --threads {threads} > {log:q} 2>&1"


grouped_rules = []
for here in mentioned(sys.argv[1:]):
    for group in groups(here):

        rule:
            name:
                group.rule
            input:
                group.inputs,
            output:
                group.summaries,
            log:
                group.log,
            benchmark:
                group.benchmark
            wildcard_constraints:
                dataset=here.dataset,
            threads: 16
            resources:
                mem_mb=lambda wildcards, attempt: 8000 * attempt,
                gpu=TRAINING_GPUS,
            params:
                arguments=trained,
                videos=[],  # as `train` has it of heads that follow their stores
                tested=group.tested,
            shell:
                "framepool train {wildcards.dataset} {params.arguments}" " --threads {threads} > {log:q} 2>&1"

        grouped_rules.append(group.rule)


if grouped_rules:
    workflow.ruleorder(*grouped_rules, "train")


rule assemble:
    input:
        everything_of,
    output:
        directory("results/{dataset}"),
    log:
        "work/{dataset}/logs/assemble.log",
    params:
        parts=parts_of,
        page=page_token,
    shell:
        "framepool assemble {wildcards.dataset} --out {output:q} > {log:q} 2>&1"
