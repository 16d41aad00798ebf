# What a rule asks of the plan, by its wildcards.

TRAINING_GPUS = int(os.environ.get("FRAMEPOOL_DEVICE", "cpu").startswith("cuda"))


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
    return plan.of(wildcards.dataset).shard_token(int(wildcards.shard), wildcards.get("store"))


def weights_of(wildcards):
    run = store_of(wildcards).trained_by
    return [run.summary] if run else []


def sources_of(wildcards):
    return store_of(wildcards).inputs(int(wildcards.shard))


def weights_for(stores):
    return [store.trained_by.summary for store in stores if store.trained_by]


def sources_for(stores):
    return lambda wildcards: sorted({path for store in stores for path in store.inputs(int(wildcards.shard))})


def store_arguments(wildcards):
    return store_of(wildcards).arguments


# Taking `output` keeps this out of what Snakemake remembers of a job: a shard that was made together with others is
# none the older for it.
def made(wildcards, output):
    here = plan.of(wildcards.dataset)
    names = {path.split("/")[-2] for path in output}
    stores = [store for store in here.stores() if store.name in names]
    split = {store.split for store in stores if store.split}
    return " ".join([*(f"--extractor {store.extractor}" for store in stores), *(f"--split {s}" for s in split)])


# Taking `output`, as above: a head that was trained together with others is none the older for it.
def trained(wildcards, output):
    here = plan.of(wildcards.dataset)
    runs = [here.run_named(path.split("/")[-2]) for path in output]
    return " ".join([*(f"--head {run.head}" for run in runs), f"--split {shlex.quote(runs[0].split)}"])


# Of a head that decodes the videos as it trains; others follow their stores.
def videos_of(wildcards):
    here = plan.of(wildcards.dataset)
    return [here.videos_token] if run_of(wildcards).live else []


def tested_of(wildcards):
    return plan.of(wildcards.dataset).tested(run_of(wildcards).split)


def page_token(wildcards):
    return plan.of(wildcards.dataset).page_token


def manifests_of(wildcards):
    return store_of(wildcards).lasting


def stores_of(wildcards):
    return run_of(wildcards).inputs


def parts_of(wildcards):
    here = plan.of(wildcards.dataset)
    return [str(here.list_file), *(item.summary for item in (*here.stores(), *here.runs(), *here.foreign_runs()))]


def everything_of(wildcards):
    # Snakemake removes what a failed job leaves, and would not miss it where the results of before still stand.
    workflow.dag.forcefiles.update(plan.of(wildcards.dataset).lost())
    return parts_of(wildcards)


def device_count(wildcards):
    return store_of(wildcards).gpus
