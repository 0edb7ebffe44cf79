"""What a task becomes when it is launched: a plan of jobs, validated, then submitted."""
