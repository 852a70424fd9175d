"""What makes what the package ships; no part of the wheel."""
