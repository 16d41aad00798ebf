# What a rule asks of the plan, by its wildcards.


def annotations(wildcards):
    return plan.of(wildcards.dataset).annotations


def clips_of(wildcards):
    here = plan.of(wildcards.dataset)
    return here.annotations if here.rendered else []


def clips_token(wildcards):
    return plan.of(wildcards.dataset).clips_token


def store_of(wildcards):
    return plan.of(wildcards.dataset).store_named(wildcards.store)


def run_of(wildcards):
    return plan.of(wildcards.dataset).run_named(wildcards.run)


def list_token(wildcards):
    return plan.of(wildcards.dataset).token


def shard_token(wildcards):
    return plan.of(wildcards.dataset).shard_token(int(wildcards.shard))


def weights_of(wildcards):
    run = store_of(wildcards).trained_by
    return [run.summary] if run else []


def store_arguments(wildcards):
    return store_of(wildcards).arguments


def manifests_of(wildcards):
    return store_of(wildcards).manifests


def run_arguments(wildcards):
    return run_of(wildcards).arguments


def stores_of(wildcards):
    return [store.summary for store in run_of(wildcards).stores.values()]


def everything_of(wildcards):
    here = plan.of(wildcards.dataset)
    # Snakemake removes what a failed job leaves, and would not miss it where the results of before still stand.
    workflow.dag.forcefiles.update(here.lost())
    return [str(here.list_file), *(item.summary for item in (*here.stores(), *here.runs()))]


def device_count(wildcards):
    return store_of(wildcards).gpus
