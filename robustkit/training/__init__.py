"""The training loop that recipes share."""
