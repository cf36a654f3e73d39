"""The models: the file `NAME.py` defines the class `Network` of the model NAME."""
