"""From a trained run to a bundle: scoring graph, calibration, ONNX, parity, packaging."""
