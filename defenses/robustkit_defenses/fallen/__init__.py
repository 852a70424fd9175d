"""Published defenses that fell: each as its paper has it, small enough to be tried, in three dresses (`dress`).

They are here to be broken: an evaluation that believes one of them is no evaluation. `reports/fallen` shows what each
claims, and what is left of it. Not one of them is to be used.
"""
