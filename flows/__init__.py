"""Part of lmseg: Prefect flows, the command line and the stages both of them run."""
