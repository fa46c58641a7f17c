"""Build validation: does a command still succeed, and does anything that validates say less than before?"""
