"""How good a model is: metrics, evaluations of a model, and the report of a tuning."""
