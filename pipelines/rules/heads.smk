# Stage two. A job is a head on a split, with all its seeds in one process.


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
    params:
        arguments=run_arguments,
    shell:
        "framepool train {wildcards.dataset} {params.arguments}" " --threads {threads} > {log:q} 2>&1"


rule assemble:
    input:
        everything_of,
    output:
        directory("results/{dataset}"),
    log:
        "work/{dataset}/logs/assemble.log",
    shell:
        "framepool assemble {wildcards.dataset} --out {output:q} > {log:q} 2>&1"
