"""The paper: default boxes, matching, loss, detection and the networks. Tensors in, tensors out."""
