"""Taking stock of a data set before anything is trained on it. Nothing here needs torch but `trainings`."""
