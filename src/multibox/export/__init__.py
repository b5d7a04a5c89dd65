"""Writes detectors for other runtimes, ONNX Runtime and OpenVINO, and runs the files."""
