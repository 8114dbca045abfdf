"""The control plane: what operators and customers may ask of a relay, apart from API calls themselves."""
