"""Attacks of other libraries behind the harness's contract: same judge, same record, same option grammar."""
