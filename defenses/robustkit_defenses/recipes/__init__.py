"""Recipes: training-time defenses. One recipe, one file; the package's table names them."""
