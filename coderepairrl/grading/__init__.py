"""The judge: hidden tests in a fresh sandbox, and what their runs mean (docs/threat_model.md)."""
