"""Where tasks come from and which are admitted: injected bugs, problem statements, admission, decontamination."""
