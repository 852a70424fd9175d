"""Training-time defenses. One recipe, one file."""
