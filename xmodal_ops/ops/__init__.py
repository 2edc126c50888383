"""One file per op: schema, fake, CPU and CUDA implementation, autograd, public function."""
