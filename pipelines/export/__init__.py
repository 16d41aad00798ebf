"""Trained heads for other programs: ONNX and OpenVINO graphs of a run, checked against the run itself.

framepool export work/ucf6/runs/attention_cluster-split1-0123abcd/seed0 --format onnx
"""
