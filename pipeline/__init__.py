"""A staged pipeline for Kaggle's Digit Recognizer: from its CSVs to a checked submission."""
