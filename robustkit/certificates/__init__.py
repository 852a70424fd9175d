"""What is proved of a model, beside what attacks break: certificates.

`proofs` has bounds of the network itself (`ladder` climbs them, on the `graph` of a network), `smoothing` those of
randomised smoothing, `instances` what verification competitions ask.
"""
