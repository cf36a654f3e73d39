"""A trained network as an ONNX file, with a model card and a page that runs it in a browser."""
