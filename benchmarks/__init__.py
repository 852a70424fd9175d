"""What robustkit costs and finds, beside its peers, in one run."""
