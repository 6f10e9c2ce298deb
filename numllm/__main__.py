"""`python -m numllm`, and `torchrun -m numllm`."""

from .cli import main

if __name__ == "__main__":
    main()
