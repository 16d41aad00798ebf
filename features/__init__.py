"""What a feature is: stores, shards, manifests, recipes, video lists and labels, batches.

Knows no network."""
