"""Stored facts and the numbers computed from them; what writes and reads them. Nothing here loads torch."""
