"""The pipelines' components, one a module: each wraps one function of ``pipelines.steps`` in typed artifacts."""
