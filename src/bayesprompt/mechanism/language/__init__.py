"""A real language model of the LLaMA family: its file, its network, and the experiments of the chapter."""
