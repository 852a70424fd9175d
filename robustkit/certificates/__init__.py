"""What is proved of a model, beside what attacks break: certificates. `smoothing` has those of randomised smoothing."""
