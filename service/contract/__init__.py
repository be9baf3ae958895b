"""The language both sides speak: feature schema, encoder, manifest, bundle, model store.

`training` and `export` write with this code and the service reads with it, so a value is encoded
once, in one way. Nothing here imports torch, onnx or onnxruntime.
"""
