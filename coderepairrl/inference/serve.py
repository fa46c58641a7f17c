"""`vllm serve`, in this interpreter and without importing vLLM's other commands: python -m coderepairrl.inference.serve
serve MODEL ..."""


def main() -> None:
    # here and not above: the engine's process, which vLLM spawns, imports this file again and needs none of it
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    command = ServeSubcommand()
    parser = FlexibleArgumentParser()
    command.subparser_init(parser.add_subparsers(required=True))
    arguments = parser.parse_args()
    command.validate(arguments)
    command.cmd(arguments)


if __name__ == "__main__":
    main()
