"""Knowledge of the API dialects: paths, headers, error shapes, model lists. No sockets, no clock."""
