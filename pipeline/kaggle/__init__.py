"""The official client in its own process, and facts about the competition and Kaggle's machines."""
