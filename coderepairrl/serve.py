"""`vllm serve`, started as a module so that it runs in this interpreter: python -m coderepairrl.serve serve MODEL ..."""
from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    main()
