"""Scores of label maps against the truth: what is compared, counted, drawn and told."""
