"""The fallen measured: each defense in three dresses, by AutoAttack, `adaptive`, and the attack made for it by hand."""
