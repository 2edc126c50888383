"""The maths in plain torch: the readable statement, the test oracle, and the path of devices without kernels."""
