"""The machinery of evaluations: candidates, features, results."""
