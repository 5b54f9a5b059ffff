"""How processes are told apart: by the kernel, and by what started them."""
