"""Records in, text out. No torch."""
