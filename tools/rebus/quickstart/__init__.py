"""The whole of Rebus once: the pipeline on this machine, its scores against the bars, a live answer, a report."""
