"""Training, evaluation, prediction, and the directories they write."""
