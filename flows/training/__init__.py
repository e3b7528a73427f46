"""Trainings as a settings file names them: images and labels opened, and the training itself."""
