"""Published methods: one file each; `system(base) -> System` composes it on a model."""
