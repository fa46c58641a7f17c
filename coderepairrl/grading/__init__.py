"""The judge: hidden tests in a fresh sandbox, and what their runs mean (grader.py; docs/threat_model.md).
Beside it build validation (validation/). Both give verdicts, whose numbers are in rewards/."""
