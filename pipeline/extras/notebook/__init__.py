"""The pipeline as a Kaggle Notebook."""
