"""The command line: thin functions that read options, call a floor below, and show what came back."""
